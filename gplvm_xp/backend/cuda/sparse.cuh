// Products of one fixed sparse matrix with many vectors, in a fixed order: no atomics.
// Compile-time: REAL, THREADS, LANES (neighbouring threads that share a row, a power of two up to 32).
// Grid: x over the rows, y over the vectors.

extern "C" __global__ void __launch_bounds__(THREADS)
gplvm_sparse(const long long* __restrict__ first, const long long* __restrict__ columns,
             const REAL* __restrict__ weights, const REAL* __restrict__ values, REAL* out,
             long long rows, long long length, long long count) {
  const int lane = threadIdx.x % LANES;
  const long long row = (long long)blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES;
  // Threads past the end stay, with nothing to add: the shuffles need whole warps.
  const long long begin = row < rows ? first[row] : 0, end = row < rows ? first[row + 1] : 0;
  for (long long v = blockIdx.y; v < count; v += gridDim.y) {
    REAL sum = REAL(0);
    for (long long e = begin + lane; e < end; e += LANES)
      sum += weights[e] * values[v * length + columns[e]];
    for (int d = LANES / 2; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (lane == 0 && row < rows) out[v * rows + row] = sum;
  }
}
