// CUDA C++ for g++: put in front of a kernel source, which is then compiled unchanged (but for
// `extern __shared__`, see emulator.py). Fibres, faults and the launch itself are in runtime.cpp.
#pragma once
#include "emulation.h"
#include <link.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __launch_bounds__(...)
// One OS thread runs everything, so thread_local is not needed for correctness: it puts every shared
// array, also those of templates, in this library's own TLS segment, which can be poisoned as a whole.
#define __shared__ static thread_local

static emulation::State* emu_state;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define threadIdx (emu_state->thread)
#define blockIdx (emu_state->block)
#define blockDim (emu_state->block_dim)
#define gridDim (emu_state->grid_dim)
static constexpr int warpSize = 32;

#define __syncthreads() emu_state->barrier(__LINE__)
#define __syncwarp(...) emu_state->warp_barrier(emulation::mask(__VA_ARGS__), __LINE__)
#define __shfl_sync(m, v, lane) emulation::shuffle(m, v, (int)(lane), __LINE__)
#define __shfl_down_sync(m, v, d) emulation::shuffle(m, v, emu_state->lane + (int)(d), __LINE__)
#define __shfl_up_sync(m, v, d) emulation::shuffle(m, v, emu_state->lane - (int)(d), __LINE__)
#define __shfl_xor_sync(m, v, d) emulation::shuffle(m, v, emu_state->lane ^ (int)(d), __LINE__)

namespace emulation {
inline unsigned mask(unsigned m = 0xffffffffu) { return m; }

template <class T> T shuffle(unsigned m, T v, int lane, int line) {
  static_assert(sizeof(T) <= 8, "shuffles move at most 8 bytes");
  uint64_t mine = 0, theirs;
  memcpy(&mine, &v, sizeof(T));
  theirs = emu_state->shuffle(m, mine, lane, line);
  memcpy(&v, &theirs, sizeof(T));
  return v;
}

// numpy's letters for what a kernel's parameter is
template <class T> struct Letter { static constexpr const char* text = "v"; };
#define EMULATION_LETTER(type, letter) \
  template <> struct Letter<type> { static constexpr const char* text = letter; };
EMULATION_LETTER(double, "f8") EMULATION_LETTER(float, "f4") EMULATION_LETTER(bool, "b1")
EMULATION_LETTER(signed char, "i1") EMULATION_LETTER(unsigned char, "u1")
EMULATION_LETTER(short, "i2") EMULATION_LETTER(unsigned short, "u2")
EMULATION_LETTER(int, "i4") EMULATION_LETTER(unsigned, "u4")
EMULATION_LETTER(long, "i8") EMULATION_LETTER(unsigned long, "u8")
EMULATION_LETTER(long long, "i8") EMULATION_LETTER(unsigned long long, "u8")
#undef EMULATION_LETTER
template <class T> struct Describe {
  static void add(char* out) { strcat(strcat(out, Letter<T>::text), " "); }
};
template <class T> struct Describe<const T> : Describe<T> {};
template <class T> struct Describe<T*> {
  static void add(char* out) { strcat(strcat(strcat(out, "*"), Letter<T>::text), " "); }
};
template <class T> struct Describe<const T*> {
  static void add(char* out) { strcat(strcat(strcat(out, "&"), Letter<T>::text), " "); }
};

template <class... A> void describe(void (*)(A...), char* out) { (Describe<A>::add(out), ...); }

template <class... A> void invoke(void (*kernel)(A...), void** args) {
  int k = 0;
  // the braces fix the order of evaluation
  struct Call {
    Call(void (*kernel)(A...), A&... a) { kernel(a...); }
  } call{kernel, *reinterpret_cast<A*>(args[k++])...};
}

template <class T, class U> T atomic_add(T* p, U v) {
  const T old = *p;
  *p = old + T(v);
  return old;
}

inline bool outside(ptrdiff_t i, ptrdiff_t n) { return i < 0 || i >= n; }
}  // namespace emulation

template <class T, class U> T atomicAdd(T* p, U v) { return emulation::atomic_add(p, v); }
template <class T> T __ldg(const T* p) { return *p; }
template <class A, class B> auto min(A a, B b) -> decltype(a + b) { return b < a ? b : a; }
template <class A, class B> auto max(A a, B b) -> decltype(a + b) { return a < b ? b : a; }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double sinpi(double x) { return sin(3.14159265358979323846 * x); }
inline double cospi(double x) { return cos(3.14159265358979323846 * x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(x); }

// CuPy's array and index types: the layout that it passes to a kernel, and a check of every index.
#define CUPY_FOR(i, n)                                                               \
  for (ptrdiff_t i = (ptrdiff_t)blockIdx.x * blockDim.x + threadIdx.x; i < (n);      \
       i += (ptrdiff_t)blockDim.x * gridDim.x)

template <class T, int N> class CArray {
  T* data_;
  ptrdiff_t size_, shape_[N ? N : 1], strides_[N ? N : 1];
  T* at(ptrdiff_t i) const {
    if (emulation::outside(i, size_))
      emu_state->fail("raw index %ld out of bounds for an array of size %ld", (long)i, (long)size_);
    ptrdiff_t offset = 0;
    for (int k = N - 1; k > 0; --k) {
      offset += strides_[k] * (i % shape_[k]);
      i /= shape_[k];
    }
    if (N > 0) offset += strides_[0] * i;
    return (T*)((char*)data_ + offset);
  }
  template <class J> T* at_all(const J* index) const {
    ptrdiff_t offset = 0;
    for (int k = 0; k < N; ++k) {
      if (emulation::outside(index[k], shape_[k]))
        emu_state->fail("index %ld out of bounds for an axis of length %ld", (long)index[k],
                        (long)shape_[k]);
      offset += strides_[k] * index[k];
    }
    return (T*)((char*)data_ + offset);
  }

 public:
  ptrdiff_t size() const { return size_; }
  const ptrdiff_t* shape() const { return shape_; }
  const ptrdiff_t* strides() const { return strides_; }
  T& operator[](ptrdiff_t i) { return *at(i); }
  const T& operator[](ptrdiff_t i) const { return *at(i); }
  template <class J> T& operator[](const J (&index)[N]) { return *at_all(index); }
  template <class J> const T& operator[](const J (&index)[N]) const { return *at_all(index); }
};

template <int N> class CIndexer {
  ptrdiff_t size_, shape_[N], index_[N];
  typedef ptrdiff_t Index[N];

 public:
  ptrdiff_t size() const { return size_; }
  const Index& get() const { return index_; }
  void set(ptrdiff_t i) {
    for (int k = N - 1; k > 0; --k) {
      index_[k] = i % shape_[k];
      i /= shape_[k];
    }
    index_[0] = i;
  }
};

// What -fsanitize calls: the first field of its data is the source location.
namespace emulation {
struct Site { const char* file; uint32_t line, column; };
inline void ub(const void* site, const char* what) {
  emu_state->fail("%s at line %ld", what, (long)((const Site*)site)->line);
}
}  // namespace emulation
#define EMULATION_HANDLER(name, what)                                                  \
  extern "C" __attribute__((visibility("hidden"), used)) void __ubsan_handle_##name(   \
      void* site, uintptr_t, uintptr_t) {                                              \
    emulation::ub(site, what);                                                         \
  }
EMULATION_HANDLER(add_overflow, "signed integer overflow in +")
EMULATION_HANDLER(sub_overflow, "signed integer overflow in -")
EMULATION_HANDLER(mul_overflow, "signed integer overflow in *")
EMULATION_HANDLER(divrem_overflow, "integer division by zero or overflow")
EMULATION_HANDLER(negate_overflow, "signed integer overflow in unary -")
EMULATION_HANDLER(shift_out_of_bounds, "shift count out of bounds")
EMULATION_HANDLER(out_of_bounds, "index out of bounds of a local or shared array")
#undef EMULATION_HANDLER

// Shared memory has no value when a block starts: fill this library's TLS segment with NaNs.
static thread_local unsigned char emu_anchor = 0;
extern "C" void emu_poison() {
  static size_t size = 0, offset = 0;
  unsigned char* const anchor = &emu_anchor;
  if (size == 0)
    dl_iterate_phdr(
        [](struct dl_phdr_info* module, size_t, void*) {
          const char* base = (const char*)module->dlpi_tls_data;
          for (int h = 0; base && h < module->dlpi_phnum; ++h) {
            const ElfW(Phdr)& header = module->dlpi_phdr[h];
            const ptrdiff_t at = (const char*)&emu_anchor - base;
            if (header.p_type != PT_TLS || at < 0 || at >= (ptrdiff_t)header.p_memsz) continue;
            size = header.p_memsz;
            offset = at;
          }
          return 0;
        },
        nullptr);
  memset(anchor - offset, 0xff, size);
}
extern "C" void emu_attach(emulation::State* state) {
  emu_state = state;
}
