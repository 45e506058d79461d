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

// th = variance, period, orientation, lengthscale; Q = 2:
// k = variance / 3 sum_j cos(c u_j.(x - z)) exp(-|x - z|^2 / (2 l^2)), c = 4 pi / (sqrt(3) period),
// u_j = (cos, sin)(orientation + j pi / 3)
struct Hexagonal {
  static constexpr int P = 4;
  static constexpr double NUMBER = 7.25519745693687140238;  // 4 pi / sqrt(3)
  static constexpr double ROOT = 0.86602540378443864676;    // sin(pi / 3)
  // phase[j] = c u_j.d, across[j] its derivative in the orientation, u[j] = c u_j; returns exp(...)
  static __device__ __forceinline__ T waves(T d0, T d1, const T* th, T* phase, T* across, T* u) {
    const T number = T(NUMBER) / th[1], c = number * cos(th[2]), s = number * sin(th[2]);
    u[0] = c;
    u[1] = s;
    u[2] = T(0.5) * c - T(ROOT) * s;
    u[3] = T(0.5) * s + T(ROOT) * c;
    u[4] = u[2] - u[0];  // three unit vectors 60 degrees apart: the last is the difference
    u[5] = u[3] - u[1];
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      phase[j] = u[2 * j] * d0 + u[2 * j + 1] * d1;
      across[j] = u[2 * j] * d1 - u[2 * j + 1] * d0;
    }
    const T w = T(1) / th[3], t0 = d0 * w, t1 = d1 * w;
    return exp(T(-0.5) * (t0 * t0 + t1 * t1));
  }
  template <int Q>
  static __device__ __forceinline__ T value(const T* x, const T* z, const T* th, bool) {
    static_assert(Q == 2, "Hexagonal: two dimensions");
    T phase[3], across[3], u[6];
    const T e = waves(x[0] - z[0], x[1] - z[1], th, phase, across, u);
    return th[0] * e * ((cos(phase[0]) + cos(phase[1]) + cos(phase[2])) * (T(1) / T(3)));
  }
  template <int Q>
  static __device__ __forceinline__ void pull(T g, const T* x, const T* z, const T* th, bool, T* gx,
                                              T* gth) {
    static_assert(Q == 2, "Hexagonal: two dimensions");
    const T d0 = x[0] - z[0], d1 = x[1] - z[1], w = T(1) / th[3];
    T phase[3], across[3], u[6];
    g *= waves(d0, d1, th, phase, across, u) * (T(1) / T(3));
    const T s = cos(phase[0]) + cos(phase[1]) + cos(phase[2]);
    gth[0] += g * s;
    g *= th[0];
    const T p = g * s * w * w;
    T along = T(0), turned = T(0), s0 = p * d0, s1 = p * d1;
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      const T sine = g * sin(phase[j]);
      along += sine * phase[j];
      turned += sine * across[j];
      s0 += sine * u[2 * j];
      s1 += sine * u[2 * j + 1];
    }
    gx[0] -= s0;
    gx[1] -= s1;
    gth[1] += along * (T(1) / th[1]);
    gth[2] -= turned;
    gth[3] += p * (d0 * d0 + d1 * d1) * w;
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
