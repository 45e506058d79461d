// What a compiled kernel and the runtime share.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace emulation {
struct Triple { unsigned x, y, z; };

struct State {
  Triple thread, block, block_dim, grid_dim;  // CUDA's built-in variables, of the running thread
  int lane;
  void* dynamic;  // the block's dynamic shared memory
  void (*barrier)(int line);
  void (*warp_barrier)(unsigned mask, int line);
  uint64_t (*shuffle)(unsigned mask, uint64_t value, int lane, int line);
  void (*fail)(const char* format, ...);  // does not return
};
}  // namespace emulation
