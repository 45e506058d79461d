// Covariance of one pair of points and its derivatives, composed at compile time.
//
// Every type has
//   P                                  the number of its parameters,
//   value<Q>(x, z, th, same)           k(x, z; th), points of Q latent dimensions,
//   pull<Q>(g, x, z, th, same, gx, gth)   gx[a] += g dk/dx_a (first argument), gth[p] += g dk/dth_p.
// `same` is true only for a point with itself, which is what White needs to know.  Every k is
// symmetric in its arguments, so the derivative in the second is pull with x and z exchanged.
#ifndef REAL
#define REAL double
#endif

namespace gplvm {
typedef REAL T;

// The loops below have compile-time bounds and must be unrolled: a local array that is indexed by a
// loop variable at run time lives in local memory, not in registers.

template <int Q> static __device__ __forceinline__ T dot(const T* x, const T* z) {
  T s = T(0);
#pragma unroll
  for (int a = 0; a < Q; ++a) s += x[a] * z[a];
  return s;
}

template <int D> static __device__ __forceinline__ T power(T base) {
  T r = T(1);
#pragma unroll
  for (int d = 0; d < D; ++d) r *= base;
  return r;
}

// th = variance, the profile's extra parameters, L lengthscales
template <class Profile, int L> struct Radial {
  static constexpr int E = Profile::E;
  static constexpr int P = 1 + E + L;
  template <int Q> static __device__ __forceinline__ T scaled(const T* x, const T* z, const T* th) {
    static_assert(L == 1 || L == Q, "Radial: one lengthscale, or one for each dimension");
    T u = T(0);
#pragma unroll
    for (int a = 0; a < Q; ++a) {
      const T t = (x[a] - z[a]) * (T(1) / th[1 + E + (L == 1 ? 0 : a)]);
      u += t * t;
    }
    return u;
  }
  template <int Q>
  static __device__ __forceinline__ T value(const T* x, const T* z, const T* th, bool) {
    T k, dk, de[E + 1];
    Profile::eval(scaled<Q>(x, z, th), th + 1, k, dk, de);
    return th[0] * k;
  }
  template <int Q>
  static __device__ __forceinline__ void pull(T g, const T* x, const T* z, const T* th, bool, T* gx,
                                              T* gth) {
    T k, dk, de[E + 1];
    const T u = scaled<Q>(x, z, th);
    Profile::eval(u, th + 1, k, dk, de);
    gth[0] += g * k;
    g *= th[0];
#pragma unroll
    for (int e = 0; e < E; ++e) gth[1 + e] += g * de[e];
    const T c = T(2) * g * dk;
#pragma unroll
    for (int a = 0; a < Q; ++a) {
      const T w = T(1) / th[1 + E + (L == 1 ? 0 : a)];
      const T t = (x[a] - z[a]) * w;
      const T p = c * t * w;
      gx[a] += p;
      if (L > 1) gth[1 + E + (L == 1 ? 0 : a)] -= p * t;
    }
    if (L == 1) gth[1 + E] -= c * u * (T(1) / th[1 + E]);
  }
};

// th = L variances: k = sum_a th_a x_a z_a
template <int L> struct Linear {
  static constexpr int P = L;
  template <int Q>
  static __device__ __forceinline__ T value(const T* x, const T* z, const T* th, bool) {
    static_assert(L == 1 || L == Q, "Linear: one variance, or one for each dimension");
    T s = T(0);
#pragma unroll
    for (int a = 0; a < Q; ++a) s += th[L == 1 ? 0 : a] * x[a] * z[a];
    return s;
  }
  template <int Q>
  static __device__ __forceinline__ void pull(T g, const T* x, const T* z, const T* th, bool, T* gx,
                                              T* gth) {
#pragma unroll
    for (int a = 0; a < Q; ++a) {
      const T p = g * z[a];
      gx[a] += p * th[L == 1 ? 0 : a];
      gth[L == 1 ? 0 : a] += p * x[a];
    }
  }
};

// th = variance, bias: k = variance (x.z + bias)^D
template <int D> struct Polynomial {
  static_assert(D >= 1, "Polynomial: the degree is at least 1");
  static constexpr int P = 2;
  template <int Q>
  static __device__ __forceinline__ T value(const T* x, const T* z, const T* th, bool) {
    return th[0] * power<D>(dot<Q>(x, z) + th[1]);
  }
  template <int Q>
  static __device__ __forceinline__ void pull(T g, const T* x, const T* z, const T* th, bool, T* gx,
                                              T* gth) {
    const T base = dot<Q>(x, z) + th[1], lower = power<D - 1>(base);
    const T c = g * th[0] * T(D) * lower;
    gth[0] += g * lower * base;
    gth[1] += c;
#pragma unroll
    for (int a = 0; a < Q; ++a) gx[a] += c * z[a];
  }
};

// th = variance, L lengthscales, period: k = variance exp(-2 sum_a sin^2(pi (x_a - z_a)/period)/l_a^2)
template <int L> struct Periodic {
  static constexpr int P = 2 + L;
  static constexpr double PI = 3.14159265358979323846;
  template <int Q>
  static __device__ __forceinline__ T value(const T* x, const T* z, const T* th, bool) {
    static_assert(L == 1 || L == Q, "Periodic: one lengthscale, or one for each dimension");
    const T frequency = T(PI) / th[1 + L];
    T u = T(0);
#pragma unroll
    for (int a = 0; a < Q; ++a) {
      const T s = sin((x[a] - z[a]) * frequency) * (T(1) / th[1 + (L == 1 ? 0 : a)]);
      u += s * s;
    }
    return th[0] * exp(T(-2) * u);
  }
  template <int Q>
  static __device__ __forceinline__ void pull(T g, const T* x, const T* z, const T* th, bool, T* gx,
                                              T* gth) {
    const T period = th[1 + L], frequency = T(PI) / period;
    T s[Q], c[Q], u = T(0);  // sine and cosine, both over the lengthscale
#pragma unroll
    for (int a = 0; a < Q; ++a) {
      const T w = T(1) / th[1 + (L == 1 ? 0 : a)], phase = (x[a] - z[a]) * frequency;
      s[a] = sin(phase) * w;
      c[a] = cos(phase) * w;
      u += s[a] * s[a];
    }
    const T k = exp(T(-2) * u);
    gth[0] += g * k;
    g *= T(4) * th[0] * k;
    T along = T(0);
#pragma unroll
    for (int a = 0; a < Q; ++a) {
      const int l = 1 + (L == 1 ? 0 : a);
      const T p = g * s[a] * c[a] * frequency;
      gx[a] -= p;
      along += p * (x[a] - z[a]);
      gth[l] += g * s[a] * s[a] * (T(1) / th[l]);
    }
    gth[1 + L] += along * (T(1) / period);
  }
};

// th = variance
struct Constant {
  static constexpr int P = 1;
  template <int Q>
  static __device__ __forceinline__ T value(const T*, const T*, const T* th, bool) {
    return th[0];
  }
  template <int Q>
  static __device__ __forceinline__ void pull(T g, const T*, const T*, const T*, bool, T*, T* gth) {
    gth[0] += g;
  }
};

// th = variance
struct White {
  static constexpr int P = 1;
  template <int Q>
  static __device__ __forceinline__ T value(const T*, const T*, const T* th, bool same) {
    return same ? th[0] : T(0);
  }
  template <int Q>
  static __device__ __forceinline__ void pull(T g, const T*, const T*, const T*, bool same, T*,
                                              T* gth) {
    gth[0] += same ? g : T(0);
  }
};

// th = A's, then B's
template <class A, class B> struct Sum {
  static constexpr int P = A::P + B::P;
  template <int Q>
  static __device__ __forceinline__ T value(const T* x, const T* z, const T* th, bool same) {
    return A::template value<Q>(x, z, th, same) + B::template value<Q>(x, z, th + A::P, same);
  }
  template <int Q>
  static __device__ __forceinline__ void pull(T g, const T* x, const T* z, const T* th, bool same,
                                              T* gx, T* gth) {
    A::template pull<Q>(g, x, z, th, same, gx, gth);
    B::template pull<Q>(g, x, z, th + A::P, same, gx, gth + A::P);
  }
};

// th = A's, then B's
template <class A, class B> struct Product {
  static constexpr int P = A::P + B::P;
  template <int Q>
  static __device__ __forceinline__ T value(const T* x, const T* z, const T* th, bool same) {
    return A::template value<Q>(x, z, th, same) * B::template value<Q>(x, z, th + A::P, same);
  }
  template <int Q>
  static __device__ __forceinline__ void pull(T g, const T* x, const T* z, const T* th, bool same,
                                              T* gx, T* gth) {
    const T a = A::template value<Q>(x, z, th, same);
    const T b = B::template value<Q>(x, z, th + A::P, same);
    A::template pull<Q>(g * b, x, z, th, same, gx, gth);
    B::template pull<Q>(g * a, x, z, th + A::P, same, gx, gth + A::P);
  }
};

// th = factor, then A's
template <class A> struct Scale {
  static constexpr int P = 1 + A::P;
  template <int Q>
  static __device__ __forceinline__ T value(const T* x, const T* z, const T* th, bool same) {
    return th[0] * A::template value<Q>(x, z, th + 1, same);
  }
  template <int Q>
  static __device__ __forceinline__ void pull(T g, const T* x, const T* z, const T* th, bool same,
                                              T* gx, T* gth) {
    gth[0] += g * A::template value<Q>(x, z, th + 1, same);
    A::template pull<Q>(g * th[0], x, z, th + 1, same, gx, gth + 1);
  }
};

// A sees x[dims[0]], x[dims[1]], ...
template <class A, int... dims> struct Active {
  static constexpr int P = A::P;
  static constexpr int N = sizeof...(dims);
  template <int Q>
  static __device__ __forceinline__ T value(const T* x, const T* z, const T* th, bool same) {
    static_assert(((dims >= 0 && dims < Q) && ...), "Active: a dimension is not below Q");
    const T xa[N] = {x[dims]...}, za[N] = {z[dims]...};
    return A::template value<N>(xa, za, th, same);
  }
  template <int Q>
  static __device__ __forceinline__ void pull(T g, const T* x, const T* z, const T* th, bool same,
                                              T* gx, T* gth) {
    const T xa[N] = {x[dims]...}, za[N] = {z[dims]...};
    T ga[N] = {};
    A::template pull<N>(g, xa, za, th, same, ga, gth);
    int a = 0;
    ((gx[dims] += ga[a++]), ...);
  }
};
}  // namespace gplvm
