// Sums over rows n and columns p of E_np = exp(a_n + b_p - sum_d u_npd^2), u_npd = m_nd - s_nd z_pd,
// which is made where it is needed and never stored.
//
// Compile-time: REAL, QDIM latent dimensions, THREADS a block, TILE rows or columns a tile.
// rows (n, 2 Q + 2): a, w, then s_d, m_d in turn; columns (p, Q + 1): b, then z_d. Indices are 64-bit.
// A thread owns a column (or a row) and goes through a part of the other side, in its order; the parts
// are summed by the host, in theirs. Nothing is added atomically.

namespace gplvm_psi {
typedef REAL T;
typedef long long Index;
constexpr int Q = QDIM;

// Neighbours in memory: one load for both.
struct alignas(2 * sizeof(T)) Two {
  T first, second;
};

static __device__ __forceinline__ T exponential(T start, const Two* sm, const T* z, T* u) {
  // Two chains, for half the latency.
  T even = start, odd = T(0);
#pragma unroll
  for (int d = 0; d < Q; ++d) {
    u[d] = sm[d].second - sm[d].first * z[d];
    if (d % 2)
      odd -= u[d] * u[d];
    else
      even -= u[d] * u[d];
  }
  return exp(even + odd);
}

// out[y, p] = sum_n w_n E_np over the rows [y * chunk, (y + 1) * chunk), and with MOVED behind it
// sum_n w_n E_np s_nd u_npd. Block (x, y): THREADS columns.
template <bool MOVED>
static __device__ __forceinline__ void over_rows(const T* rows, const T* columns, T* out, Index n,
                                                 Index pairs, Index chunk) {
  constexpr int WIDTH = MOVED ? Q + 1 : 1;
  __shared__ Two tile[TILE * (Q + 1)];
  const Index p = Index(blockIdx.x) * THREADS + threadIdx.x;
  const Index start = blockIdx.y * chunk, stop = min(n, start + chunk);
  T b = T(0), z[Q], sum = T(0), moved[Q] = {};
  if (p < pairs) {
    b = columns[p * (Q + 1)];
#pragma unroll
    for (int d = 0; d < Q; ++d) z[d] = columns[p * (Q + 1) + 1 + d];
  }
  for (Index n0 = start; n0 < stop; n0 += TILE) {
    const int count = int(min(Index(TILE), stop - n0));
    for (int e = threadIdx.x; e < count * (Q + 1); e += THREADS) {
      const Index k = 2 * (n0 * (Q + 1) + e);
      tile[e].first = rows[k];
      tile[e].second = rows[k + 1];
    }
    __syncthreads();
    if (p < pairs)
      for (int r = 0; r < count; ++r) {
        const Two *head = tile + r * (Q + 1), *sm = head + 1;
        T u[Q];
        const T e = head->second * exponential(head->first + b, sm, z, u);
        sum += e;
        if (MOVED)
#pragma unroll
          for (int d = 0; d < Q; ++d) moved[d] += e * (sm[d].first * u[d]);
      }
    __syncthreads();
  }
  if (p < pairs) {
    T* own = out + (blockIdx.y * pairs + p) * WIDTH;
    own[0] = sum;
    if (MOVED)
#pragma unroll
      for (int d = 0; d < Q; ++d) own[1 + d] = moved[d];
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
gplvm_psi_sums(const T* __restrict__ rows, const T* __restrict__ columns, T* __restrict__ out, Index n,
               Index pairs, Index chunk) {
  over_rows<false>(rows, columns, out, n, pairs, chunk);
}

extern "C" __global__ void __launch_bounds__(THREADS)
gplvm_psi_columns(const T* __restrict__ rows, const T* __restrict__ columns, T* __restrict__ out,
                  Index n, Index pairs, Index chunk) {
  over_rows<true>(rows, columns, out, n, pairs, chunk);
}

// out[y, n] = sum_p g_p E_np (1, u_npd, u_npd^2), 2 Q + 1 numbers, over the columns
// [y * chunk, (y + 1) * chunk). Block (x, y): THREADS rows.
extern "C" __global__ void __launch_bounds__(THREADS)
gplvm_psi_rows(const T* __restrict__ rows, const T* __restrict__ columns, const T* __restrict__ g,
               T* __restrict__ out, Index n, Index pairs, Index chunk) {
  __shared__ T tile[TILE * (Q + 1)], weights[TILE];
  const Index i = Index(blockIdx.x) * THREADS + threadIdx.x;
  const Index start = blockIdx.y * chunk, stop = min(pairs, start + chunk);
  T a = T(0), sum = T(0), once[Q] = {}, twice[Q] = {};
  Two sm[Q];
  if (i < n) {
    const T* own = rows + i * (2 * Q + 2);
    a = own[0];
#pragma unroll
    for (int d = 0; d < Q; ++d) {
      sm[d].first = own[2 + 2 * d];
      sm[d].second = own[3 + 2 * d];
    }
  }
  for (Index p0 = start; p0 < stop; p0 += TILE) {
    const int count = int(min(Index(TILE), stop - p0));
    for (int e = threadIdx.x; e < count * (Q + 1); e += THREADS) tile[e] = columns[p0 * (Q + 1) + e];
    for (int e = threadIdx.x; e < count; e += THREADS) weights[e] = g[p0 + e];
    __syncthreads();
    if (i < n)
      for (int c = 0; c < count; ++c) {
        const T* column = tile + c * (Q + 1);
        T u[Q];
        const T e = weights[c] * exponential(a + column[0], sm, column + 1, u);
        sum += e;
#pragma unroll
        for (int d = 0; d < Q; ++d) {
          const T eu = e * u[d];
          once[d] += eu;
          twice[d] += eu * u[d];
        }
      }
    __syncthreads();
  }
  if (i < n) {
    T* own = out + (blockIdx.y * n + i) * (2 * Q + 1);
    own[0] = sum;
#pragma unroll
    for (int d = 0; d < Q; ++d) {
      own[1 + d] = once[d];
      own[1 + Q + d] = twice[d];
    }
  }
}
}  // namespace gplvm_psi
