// Goes behind local.cuh. It needs a second matrix in shared memory, so that it takes smaller blocks.

namespace gplvm {
// ln p(all rows of the block), with alpha = K^-1 Y: the cotangent of K is (alpha alpha' - D K^-1) / 2.
extern "C" __global__ void __launch_bounds__(THREADS)
gplvm_joint(const T* __restrict__ X, const T* __restrict__ Y, const T* __restrict__ theta,
            const T* __restrict__ noise, const Index* __restrict__ rows, const T* __restrict__ mask,
            T* __restrict__ values, T* __restrict__ gtheta, T* __restrict__ gnoises,
            T* __restrict__ gX, Index D, T outputs, int has_mask) {
  __shared__ Block s;
  __shared__ T inverse[R * PITCH];
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
  const T half = total(s.buffer, t < m ? log(s.K[t * PITCH + t]) : T(0));
  // A thread solves for a column of the inverse: all read the same entry of the factor at a time.
  if (t < m) {
    for (int i = 0; i < m; ++i) {
      T z = i == t ? T(1) : T(0);
      for (int j = t; j < i; ++j) z -= s.K[i * PITCH + j] * inverse[j * PITCH + t];
      inverse[i * PITCH + t] = i < t ? T(0) : z / s.K[i * PITCH + i];
    }
    for (int i = m - 1; i >= 0; --i) {
      T z = inverse[i * PITCH + t];
      for (int j = i + 1; j < m; ++j) z -= s.K[j * PITCH + i] * inverse[j * PITCH + t];
      inverse[i * PITCH + t] = z / s.K[i * PITCH + i];
    }
  }
  __syncthreads();
  // The factor has done its work: alpha alpha' goes where it was.
  if (t < m)
    for (int j = 0; j < m; ++j) s.K[t * PITCH + j] = T(0);
  T square = T(0);
  for (Index d = 0; d < D; ++d) {
    T alpha = T(0);
    if (t < m) {
      for (int j = 0; j < m; ++j) alpha += inverse[j * PITCH + t] * Y[s.row[j] * D + d];
      square += alpha * Y[s.row[t] * D + d];
    }
    __syncthreads();
    s.buffer[t] = alpha;
    __syncthreads();
    if (t < m)
      for (int j = 0; j < m; ++j) s.K[t * PITCH + j] += alpha * s.buffer[j];
  }
  square = total(s.buffer, square);
  const T own = t < m ? s.K[t * PITCH + t] - outputs * inverse[t * PITCH + t] : T(0);
  const T gnoise = T(0.5) * total(s.buffer, own);
  const T value = T(-0.5) * (square + T(m) * outputs * log(T(6.28318530717958647693))) - outputs * half;
  contract(
      s, th, [&](int i, int j) { return s.K[i * PITCH + j] - outputs * inverse[i * PITCH + j]; }, value,
      gnoise, values, gtheta, gnoises, gX);
}
}  // namespace gplvm
