// The two kernels of a training step of an exact model, in a source of their own: a first fit then waits
// for the compilation of no others. Goes behind fused.cuh.

namespace gplvm {
// Block (x, y): THREADS columns, the rows [y * chunk, (y + 1) * chunk).
extern "C" __global__ void __launch_bounds__(THREADS)
gplvm_gram(const T* __restrict__ X, const T* __restrict__ Z, const T* __restrict__ theta,
           T* __restrict__ K, Index n, Index m, Index chunk, int self) {
  __shared__ T tile[TILE * Q];
  const Index j = Index(blockIdx.x) * THREADS + threadIdx.x;
  const Index start = blockIdx.y * chunk, stop = min(n, start + chunk);
  T th[P], z[Q];
  load_theta(th, theta);
  if (j < m) load_point(z, Z, j);
  for (Index i0 = start; i0 < stop; i0 += TILE) {
    const int count = int(min(Index(TILE), stop - i0));
    load_tile(tile, X, i0, count);
    __syncthreads();
    if (j < m)
      for (int r = 0; r < count; ++r)
        K[at(i0 + r, m, j)] = Pair::value<Q>(tile + r * Q, z, th, self && i0 + r == j);
    __syncthreads();
  }
}

// Z not given and G symmetric
extern "C" __global__ void __launch_bounds__(THREADS)
gplvm_pull_symmetric(const T* __restrict__ X, const T* __restrict__ theta, const T* __restrict__ G,
                     T* __restrict__ gX, T* __restrict__ gtheta, Index n, Index chunk) {
  contract<SYMMETRIC, true>(X, X, theta, G, gX, gtheta, n, n, chunk, true);
}
}  // namespace gplvm
