// Log-likelihoods of many small blocks of rows, and their gradients: one thread block a block of rows.
//
// Compile-time: REAL, QDIM latent dimensions, ROWS rows of a block, THREADS (32 or 64, at
// least ROWS). X (n, Q), Y (n, D); rows (B, ROWS) says which of them a block has, mask (B, ROWS) is 0 for a
// filler (has_mask 0: there are none). The covariance lives in shared memory, and its factor in place.
// Nothing is added atomically: what blocks share is written by block and summed by the host.

namespace gplvm {
typedef long long Index;
constexpr int Q = QDIM;
constexpr int P = Pair::P;
constexpr int R = ROWS;
constexpr int PITCH = R + 1;  // threads of neighbouring rows are on different banks

struct Block {
  T K[R * PITCH];  // lower triangle: the covariance, then its factor
  T x[R * Q];
  T c[R], p[R], buffer[THREADS];
  Index row[R];
  int place[R];
  int count;
};

static __device__ __forceinline__ T total(T* buffer, T value) {
  __syncthreads();
  buffer[threadIdx.x] = value;
  __syncthreads();
  for (int half = THREADS / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) buffer[threadIdx.x] += buffer[threadIdx.x + half];
    __syncthreads();
  }
  return buffer[0];
}

// The rows that are there, in order, and their latents.
static __device__ __forceinline__ void gather(Block& s, const T* X, const Index* rows, const T* mask,
                                              int has_mask) {
  const Index first = Index(blockIdx.x) * R;
  if (threadIdx.x == 0) {
    int m = 0;
    for (int i = 0; i < R; ++i)
      if (!has_mask || mask[first + i] != T(0)) {
        s.place[m] = i;
        s.row[m++] = rows[first + i];
      }
    s.count = m;
  }
  __syncthreads();
  for (int e = threadIdx.x; e < s.count * Q; e += THREADS) s.x[e] = X[s.row[e / Q] * Q + e % Q];
  __syncthreads();
}

// K + noise I and its factor, column by column; false where it is not positive definite.
static __device__ __forceinline__ bool factorise(Block& s, const T* th, T noise) {
  const int m = s.count, t = threadIdx.x;
  for (int e = t; e < m * m; e += THREADS) {
    const int i = e / m, j = e % m;
    if (j <= i)
      s.K[i * PITCH + j] = Pair::value<Q>(s.x + i * Q, s.x + j * Q, th, i == j) + (i == j ? noise : T(0));
  }
  __syncthreads();
  for (int k = 0; k < m; ++k) {
    T sum = T(0);
    const int i = k + t;
    if (i < m) {
      T even = s.K[i * PITCH + k], odd = T(0);
      int j = 0;
      for (; j + 1 < k; j += 2) {
        even -= s.K[i * PITCH + j] * s.K[k * PITCH + j];
        odd -= s.K[i * PITCH + j + 1] * s.K[k * PITCH + j + 1];
      }
      if (j < k) even -= s.K[i * PITCH + j] * s.K[k * PITCH + j];
      sum = even + odd;
    }
    if (t == 0) s.buffer[0] = sum;
    __syncthreads();
    const T pivot = s.buffer[0];
    // Every thread reads the same number, so all leave together; infinity and NaN leave too.
    if (!(pivot > T(0)) || pivot - pivot != T(0)) return false;
    const T root = sqrt(pivot);
    if (i < m) s.K[i * PITCH + k] = t == 0 ? root : sum / root;
    __syncthreads();
  }
  return true;
}

// c <- L^-1 c or L^-T c, of the first `m` rows; thread i owns entry i, so that no barrier is needed before
// the first and behind the last.
static __device__ __forceinline__ void forward(Block& s, T* c, int m) {
  const int t = threadIdx.x;
  T sum = T(0);
  for (int k = 0; k < m; ++k) {
    if (t == k) c[k] = (c[k] - sum) / s.K[k * PITCH + k];
    __syncthreads();
    if (t > k && t < m) sum += s.K[t * PITCH + k] * c[k];
  }
}

static __device__ __forceinline__ void backward(Block& s, T* c, int m) {
  const int t = threadIdx.x;
  T sum = T(0);
  for (int k = m - 1; k >= 0; --k) {
    if (t == k) c[k] = (c[k] - sum) / s.K[k * PITCH + k];
    __syncthreads();
    if (t < k) sum += s.K[k * PITCH + t] * c[k];
  }
}

// What every block writes; g(i, j) is the weight of dk(x_i, x_j), both orders of the pair counted.
template <class Weight>
static __device__ __forceinline__ void contract(Block& s, const T* th, Weight g, T value, T gnoise,
                                                T* values, T* gtheta, T* gnoises, T* gX) {
  const int t = threadIdx.x, m = s.count;
  const Index block = blockIdx.x;
  T gx[Q] = {}, gth[P] = {};
  if (t < m) {
    T own[Q];
#pragma unroll
    for (int a = 0; a < Q; ++a) own[a] = s.x[t * Q + a];
    for (int j = 0; j < m; ++j) Pair::pull<Q>(g(t, j), own, s.x + j * Q, th, t == j, gx, gth);
    T* out = gX + (block * R + s.place[t]) * Q;
#pragma unroll
    for (int a = 0; a < Q; ++a) out[a] = gx[a];
  }
#pragma unroll
  for (int p = 0; p < P; ++p) {
    const T sum = total(s.buffer, gth[p]);
    if (t == 0) gtheta[block * P + p] = T(0.5) * sum;
  }
  if (t == 0) {
    values[block] = value;
    gnoises[block] = gnoise;
  }
}

static __device__ __forceinline__ void clear(T* gX) {
  for (int e = threadIdx.x; e < R * Q; e += THREADS) gX[Index(blockIdx.x) * R * Q + e] = T(0);
}

static __device__ __forceinline__ void fail(T* values, T* gtheta, T* gnoises) {
  if (threadIdx.x == 0) {
    values[blockIdx.x] = log(T(0));
    gnoises[blockIdx.x] = T(0);
    for (int p = 0; p < P; ++p) gtheta[Index(blockIdx.x) * P + p] = T(0);
  }
}

// ln p(last row | the others): c = (-K_NN^-1 k_N, 1), v = c'Kc, e = Y'c, w = (K_NN^-1 Y_N e, 0).
extern "C" __global__ void __launch_bounds__(THREADS)
gplvm_conditional(const T* __restrict__ X, const T* __restrict__ Y, const T* __restrict__ theta,
                  const T* __restrict__ noise, const Index* __restrict__ rows,
                  const T* __restrict__ mask, T* __restrict__ values, T* __restrict__ gtheta,
                  T* __restrict__ gnoises, T* __restrict__ gX, Index D, T outputs, int has_mask) {
  __shared__ Block s;
  const int t = threadIdx.x;
  T th[P];
#pragma unroll
  for (int p = 0; p < P; ++p) th[p] = theta[p];
  clear(gX);
  gather(s, X, rows, mask, has_mask);
  const int m = s.count;
  if (!factorise(s, th, noise[0])) {
    fail(values, gtheta, gnoises);
    return;
  }
  const T last = s.K[(m - 1) * PITCH + m - 1], v = last * last;
  if (t < m) {
    s.c[t] = t == m - 1 ? last : T(0);
    s.p[t] = T(0);
  }
  backward(s, s.c, m);
  T square = T(0);
  for (Index d0 = 0; d0 < D; d0 += THREADS) {
    const Index d = d0 + t;
    T e = T(0);
    if (d < D)
      for (int i = 0; i < m; ++i) e += s.c[i] * Y[s.row[i] * D + d];
    square += e * e;
    __syncthreads();
    s.buffer[t] = e;
    __syncthreads();
    if (t < m - 1) {
      const int stop = int(min(Index(THREADS), D - d0));
      const T* y = Y + s.row[t] * D + d0;
      T sum = T(0);
      for (int k = 0; k < stop; ++k) sum += y[k] * s.buffer[k];
      s.p[t] += sum;
    }
  }
  square = total(s.buffer, square);
  forward(s, s.p, m - 1);
  backward(s, s.p, m - 1);
  const T slope = T(-0.5) * (outputs - square / v) / v;
  if (t < m) s.p[t] = slope * s.c[t] + s.p[t] / v;
  const T gnoise = total(s.buffer, t < m ? s.p[t] * s.c[t] : T(0));
  const T value = T(-0.5) * (outputs * log(T(6.28318530717958647693) * v) + square / v);
  contract(
      s, th, [&](int i, int j) { return s.p[i] * s.c[j] + s.p[j] * s.c[i]; }, value, gnoise, values,
      gtheta, gnoises, gX);
}
}  // namespace gplvm
