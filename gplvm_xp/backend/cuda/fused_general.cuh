// Contractions for two sets of points or a cotangent that is not symmetric, and the directional
// derivative. Goes behind fused.cuh.

namespace gplvm {
// Z not given, any G
extern "C" __global__ void __launch_bounds__(THREADS)
gplvm_pull_self(const T* __restrict__ X, const T* __restrict__ theta, const T* __restrict__ G,
                T* __restrict__ gX, T* __restrict__ gtheta, Index n, Index chunk) {
  contract<BOTH, true>(X, X, theta, G, gX, gtheta, n, n, chunk, true);
}

// Z given: the rows of G own
extern "C" __global__ void __launch_bounds__(THREADS)
gplvm_pull_rows(const T* __restrict__ X, const T* __restrict__ Z, const T* __restrict__ theta,
                const T* __restrict__ G, T* __restrict__ gX, T* __restrict__ gtheta, Index n, Index m,
                Index chunk) {
  contract<OWNERS_DOWN_COLUMN, true>(X, Z, theta, G, gX, gtheta, n, m, chunk, false);
}

// Z given: the columns of G own
extern "C" __global__ void __launch_bounds__(THREADS)
gplvm_pull_columns(const T* __restrict__ X, const T* __restrict__ Z, const T* __restrict__ theta,
                   const T* __restrict__ G, T* __restrict__ gZ, Index n, Index m, Index chunk) {
  contract<OWNERS_ALONG_ROWS, false>(Z, X, theta, G, gZ, nullptr, m, n, chunk, false);
}

// Block (x, y): THREADS columns, the rows [y * chunk, (y + 1) * chunk).
// dK_ij = d1 k . dx_i + d2 k . dz_j + dk/dth . dth
extern "C" __global__ void __launch_bounds__(THREADS)
gplvm_jvp(const T* __restrict__ X, const T* __restrict__ Z, const T* __restrict__ theta,
          const T* __restrict__ dX, const T* __restrict__ dZ, const T* __restrict__ dtheta,
          T* __restrict__ dK, Index n, Index m, Index chunk, int self) {
  __shared__ T tile[TILE * Q], dtile[TILE * Q];
  const Index j = Index(blockIdx.x) * THREADS + threadIdx.x;
  const Index start = blockIdx.y * chunk, stop = min(n, start + chunk);
  T th[P], dth[P], z[Q], dz[Q];
  load_theta(th, theta);
  load_theta(dth, dtheta);
  if (j < m) {
    load_point(z, Z, j);
    load_point(dz, dZ, j);
  }
  for (Index i0 = start; i0 < stop; i0 += TILE) {
    const int count = int(min(Index(TILE), stop - i0));
    load_tile(tile, X, i0, count);
    load_tile(dtile, dX, i0, count);
    __syncthreads();
    if (j < m)
      for (int r = 0; r < count; ++r) {
        const T *x = tile + r * Q, *dx = dtile + r * Q;
        const bool same = self && i0 + r == j;
        T g1[Q] = {}, g2[Q] = {}, gth[P] = {}, unused[P] = {};
        Pair::pull<Q>(T(1), x, z, th, same, g1, gth);
        Pair::pull<Q>(T(1), z, x, th, same, g2, unused);
        T s = dot<Q>(g1, dx) + dot<Q>(g2, dz);
#pragma unroll
        for (int p = 0; p < P; ++p) s += gth[p] * dth[p];
        dK[at(i0 + r, m, j)] = s;
      }
    __syncthreads();
  }
}
}  // namespace gplvm
