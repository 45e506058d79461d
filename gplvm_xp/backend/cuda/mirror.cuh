// Copies the lower triangle of a row-major square matrix to its upper triangle, in place.
// Compile-time: REAL, SIDE (of a tile). Block (SIDE, ROWS); block (x, y) moves tile (row x, column y).

extern "C" __global__ void __launch_bounds__(SIDE * ROWS)
gplvm_mirror(REAL* K, long long n) {
  // Through shared memory so that both the read and the write run along rows of K; the extra column
  // keeps a warp that reads down a column on different banks.
  __shared__ REAL tile[SIDE][SIDE + 1];
  if (blockIdx.y > blockIdx.x) return;
  const long long row = (long long)blockIdx.x * SIDE, column = (long long)blockIdx.y * SIDE;
  for (int r = threadIdx.y; r < SIDE; r += ROWS)
    if (row + r < n && column + threadIdx.x < n)
      tile[r][threadIdx.x] = K[(row + r) * n + column + threadIdx.x];
  __syncthreads();
  for (int r = threadIdx.y; r < SIDE; r += ROWS) {
    const long long i = column + r, j = row + threadIdx.x;
    if (j < n && i < j) K[i * n + j] = tile[threadIdx.x][r];
  }
}
