// What the kernels of fused_train.cuh and fused_general.cuh share, for gplvm::Pair.
//
// Compile-time: QDIM latent dimensions, THREADS a block (a multiple of 32), TILE points a tile.
// Matrices are row-major. Point and matrix indices are 64-bit: n * n passes 2^31 at n = 46 341.
// Nothing is added atomically: blocks write partial results that the host sums in a fixed order.

namespace gplvm {
typedef long long Index;
constexpr int Q = QDIM;
constexpr int P = Pair::P;

static __device__ __forceinline__ Index at(Index row, Index columns, Index column) {
  return row * columns + column;
}

static __device__ __forceinline__ void load_theta(T* th, const T* theta) {
#pragma unroll
  for (int p = 0; p < P; ++p) th[p] = theta[p];
}

static __device__ __forceinline__ void load_point(T* x, const T* X, Index i) {
#pragma unroll
  for (int a = 0; a < Q; ++a) x[a] = X[at(i, Q, a)];
}

static __device__ __forceinline__ void load_tile(T* tile, const T* X, Index first, int count) {
  for (int e = threadIdx.x; e < count * Q; e += THREADS) tile[e] = X[first * Q + e];
}

// How the weight of (owner a, other b) is read. Threads of a warp are neighbouring owners, so G with
// the owners along its rows is coalesced, and G with the owners down its columns goes through a tile.
enum Weights {
  OWNERS_ALONG_ROWS,   // G[b, a]
  OWNERS_DOWN_COLUMN,  // G[a, b]
  SYMMETRIC,           // 2 G[b, a], for G = G^T
  BOTH                 // G[a, b] + G[b, a]
};

// gA[y, a] = sum_b weight(a, b) d1 k(A_a, B_b); gtheta[block] = sum_ab weight(a, b) dk/dth, halved
// where the weight counts both orders of a pair. Block (x, y): THREADS owners a, one thread each, and
// the others b of [y * chunk, (y + 1) * chunk).
template <int WEIGHTS, bool THETA>
static __device__ __forceinline__ void contract(const T* A, const T* B, const T* theta, const T* G,
                                                T* gA, T* gtheta, Index na, Index nb, Index chunk,
                                                bool self) {
  constexpr bool STAGED = WEIGHTS == OWNERS_DOWN_COLUMN || WEIGHTS == BOTH;
  constexpr int PITCH = TILE + 1;  // the extra column keeps a warp on different banks
  __shared__ T tile[TILE * Q], staged[STAGED ? THREADS * PITCH : 1];
  const int t = threadIdx.x;
  const Index a0 = Index(blockIdx.x) * THREADS, a = a0 + t;
  const Index start = blockIdx.y * chunk, stop = min(nb, start + chunk);
  T th[P], x[Q], ga[Q] = {}, gth[P] = {};
  load_theta(th, theta);
  if (a < na) load_point(x, A, a);
  for (Index b0 = start; b0 < stop; b0 += TILE) {
    const int count = int(min(Index(TILE), stop - b0));
    load_tile(tile, B, b0, count);
    if (STAGED)
      for (int e = t; e < THREADS * TILE; e += THREADS) {
        const int r = e / TILE, c = e % TILE;
        if (a0 + r < na && c < count) staged[r * PITCH + c] = G[at(a0 + r, nb, b0 + c)];
      }
    __syncthreads();
    if (a < na)
      for (int c = 0; c < count; ++c) {
        T g = STAGED ? staged[t * PITCH + c] : G[at(b0 + c, na, a)];
        if (WEIGHTS == SYMMETRIC) g *= T(2);
        if (WEIGHTS == BOTH) g += G[at(b0 + c, na, a)];
        Pair::pull<Q>(g, x, tile + c * Q, th, self && a == b0 + c, ga, gth);
      }
    __syncthreads();
  }
  if (a < na)
#pragma unroll
    for (int d = 0; d < Q; ++d) gA[at(at(blockIdx.y, na, a), Q, d)] = ga[d];
  if (THETA) {
    __shared__ T warps[THREADS / 32 * P];
#pragma unroll
    for (int p = 0; p < P; ++p) {
      T v = gth[p];
      for (int shift = 16; shift > 0; shift /= 2) v += __shfl_down_sync(0xffffffffu, v, shift);
      if (t % 32 == 0) warps[t / 32 * P + p] = v;
    }
    __syncthreads();
    for (int p = t; p < P; p += THREADS) {
      T v = T(0);
      for (int w = 0; w < THREADS / 32; ++w) v += warps[w * P + p];
      if (WEIGHTS == SYMMETRIC || WEIGHTS == BOTH) v *= T(0.5);
      gtheta[at(at(blockIdx.y, gridDim.x, blockIdx.x), P, p)] = v;
    }
  }
}

}  // namespace gplvm
