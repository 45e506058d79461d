// Runs the blocks of a launch one after the other, the threads of a block as fibres that switch only
// at barriers and shuffles. A fault (a failed check, SIGSEGV on a guard page, ...) abandons the launch.
#include "emulation.h"
#include <algorithm>
#include <random>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include <vector>

// glibc's checked longjmp refuses to go to another stack, which is what a fibre is.
#ifdef _FORTIFY_SOURCE
#error "compile with -U_FORTIFY_SOURCE"
#endif

namespace {
using emulation::State;
enum Status { READY, AT_BARRIER, AT_WARP, DONE };
enum Order { FORWARD, REVERSE, SHUFFLE };
constexpr int WARP = 32;
// A guard wider than any one frame: a frame that begins below the stack must not step over it.
constexpr size_t STACK = 128 << 10, GUARD = 256 << 10;

struct Fibre {
  jmp_buf where;
  bool started = false;
  Status status = DONE;
  int line = 0;
  unsigned mask = 0;
  uint64_t value = 0;
};

State state;
std::vector<Fibre> fibres;
char* stacks = nullptr;
size_t n_stacks = 0;
int current = 0, n_threads = 0;
jmp_buf scheduler;
sigjmp_buf fault;
char* message = nullptr;
size_t message_size = 0;
void* fault_address = nullptr;
void (*kernel)(void**) = nullptr;
void** kernel_args = nullptr;
bool fibres_in_use = false;

enum Result { OK, FAILED, SIGNALLED };

void fail(const char* format, ...) {
  va_list list;
  va_start(list, format);
  vsnprintf(message, message_size, format, list);
  va_end(list);
  siglongjmp(fault, FAILED);
}

void on_signal(int, siginfo_t* info, void*) {
  fault_address = info->si_addr;
  siglongjmp(fault, SIGNALLED);
}

void become(int t) {
  const unsigned x = state.block_dim.x, y = state.block_dim.y;
  current = t;
  state.thread = {t % x, t / x % y, t / (x * y)};
  state.lane = t % WARP;
}

void to_scheduler() {
  if (_setjmp(fibres[current].where) == 0) _longjmp(scheduler, 1);
}

void wait(Status status, unsigned mask, int line) {
  if (!fibres_in_use)
    fail("a barrier at line %d of a kernel that was taken to have none", line);
  Fibre& me = fibres[current];
  me.status = status;
  me.mask = mask;
  me.line = line;
  to_scheduler();
}
void barrier(int line) { wait(AT_BARRIER, 0, line); }
void warp_barrier(unsigned mask, int line) { wait(AT_WARP, mask, line); }

uint64_t shuffle(unsigned mask, uint64_t value, int lane, int line) {
  const int me = current, from = me / WARP * WARP + lane;
  fibres[me].value = value;
  warp_barrier(mask, line);
  const bool there = lane >= 0 && lane < WARP && from < n_threads;
  if (there && (mask >> lane & 1) == 0)
    fail("a shuffle at line %d reads lane %d, which its mask leaves out", line, lane);
  const uint64_t seen = there ? fibres[from].value : value;
  warp_barrier(mask, line);  // nobody overwrites its value before all have read
  return seen;
}

void fibre_main() {
  for (;;) {
    kernel(kernel_args);
    fibres[current].status = DONE;
    to_scheduler();
  }
}

void resume(int t) {
  become(t);
  if (_setjmp(scheduler) != 0) return;
  if (fibres[t].started) _longjmp(fibres[t].where, 1);
  fibres[t].started = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = stacks + t * (STACK + GUARD) + GUARD;
  context.uc_stack.ss_size = STACK;
  context.uc_link = nullptr;
  makecontext(&context, fibre_main, 0);
  setcontext(&context);
}

void make_stacks(size_t n) {
  if (n <= n_stacks) return;
  if (stacks) munmap(stacks, n_stacks * (STACK + GUARD));
  stacks = (char*)mmap(nullptr, n * (STACK + GUARD), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  for (size_t t = 0; t < n; ++t) mprotect(stacks + t * (STACK + GUARD), GUARD, PROT_NONE);
  n_stacks = n;
}

// Lets go on every warp whose named lanes have all arrived.
bool release_warps() {
  bool any = false;
  for (int first = 0; first < n_threads; first += WARP) {
    const int last = std::min(n_threads, first + WARP);
    unsigned here = 0, alive = 0, wanted = 0;
    for (int t = first; t < last; ++t) {
      if (fibres[t].status == AT_WARP) here |= 1u << t % WARP, wanted |= fibres[t].mask;
      if (fibres[t].status != DONE) alive |= 1u << t % WARP;
    }
    if (here == 0 || (wanted & alive & ~here) != 0) continue;
    for (int t = first; t < last; ++t)
      if (fibres[t].status == AT_WARP) fibres[t].status = READY;
    any = true;
  }
  return any;
}

void run_block(int order, std::mt19937& random, std::vector<int>& turn) {
  if (!fibres_in_use) {
    if (order == SHUFFLE) std::shuffle(turn.begin(), turn.end(), random);
    for (int t : turn) {
      become(t);
      kernel(kernel_args);
    }
    return;
  }
  for (Fibre& f : fibres) f.status = READY;
  for (;;) {
    if (order == SHUFFLE) std::shuffle(turn.begin(), turn.end(), random);
    for (int t : turn)
      if (fibres[t].status == READY) resume(t);
    int done = 0, waiting = 0, line = 0, other = 0;
    for (const Fibre& f : fibres) {
      done += f.status == DONE;
      if (f.status != AT_BARRIER) continue;
      if (waiting++ == 0) line = f.line;
      if (f.line != line) other = f.line;
    }
    if (done == n_threads) return;
    if (waiting == n_threads && other == 0) {
      for (Fibre& f : fibres) f.status = READY;
      continue;
    }
    if (release_warps()) continue;
    if (other != 0) fail("divergent __syncthreads() at lines %d and %d", line, other);
    if (waiting > 0 && done > 0)
      fail("__syncthreads() at line %d not reached by %d thread(s) that had returned", line, done);
    fail("deadlock: %d thread(s) at a block barrier, %d returned, the others at a warp barrier",
         waiting, done);
  }
}

const int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
}  // namespace

extern "C" State* emu_init() {
  state.barrier = barrier;
  state.warp_barrier = warp_barrier;
  state.shuffle = shuffle;
  state.fail = fail;
  return &state;
}

extern "C" void* emu_fault_address() { return fault_address; }

// Runs the blocks [first, last) of the launch. `poison` resets static shared memory before a block;
// dynamic shared memory lies flush against a page that can't be touched.
extern "C" int emu_launch(void (*run)(void**), void (*poison)(), void** args, const unsigned* grid,
                          const unsigned* block, size_t shared, int with_fibres, int order,
                          long first, long last, unsigned seed, char* text, size_t text_size) {
  message = text;
  message_size = text_size;
  message[0] = 0;
  kernel = run;
  kernel_args = args;
  fibres_in_use = with_fibres != 0;
  n_threads = int(block[0] * block[1] * block[2]);
  if (fibres_in_use) make_stacks(n_threads);
  fibres.assign(n_threads, Fibre());
  state.grid_dim = {grid[0], grid[1], grid[2]};
  state.block_dim = {block[0], block[1], block[2]};

  const size_t page = sysconf(_SC_PAGESIZE), whole = (shared + page - 1) / page * page;
  char* dynamic = (char*)mmap(nullptr, whole + page, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  mprotect(dynamic + whole, page, PROT_NONE);
  state.dynamic = dynamic + whole - shared;

  static char alternative[64 << 10];  // a fibre that ran off its stack has none to handle that on
  stack_t signal_stack = {}, old_stack;
  signal_stack.ss_sp = alternative;
  signal_stack.ss_size = sizeof alternative;
  sigaltstack(&signal_stack, &old_stack);
  struct sigaction action = {}, old[4];
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  for (int s = 0; s < 4; ++s) sigaction(SIGNALS[s], &action, &old[s]);

  fault_address = nullptr;
  const int result = sigsetjmp(fault, 1);
  if (result == OK) {
    std::mt19937 random(seed);
    std::vector<int> turn(n_threads);
    for (int t = 0; t < n_threads; ++t) turn[t] = order == REVERSE ? n_threads - 1 - t : t;
    for (long b = first; b < last; ++b) {
      const long i = order == REVERSE ? first + last - 1 - b : b;
      state.block = {unsigned(i % grid[0]), unsigned(i / grid[0] % grid[1]),
                     unsigned(i / ((long)grid[0] * grid[1]))};
      memset(dynamic, 0xff, whole);
      poison();
      run_block(order, random, turn);
    }
  }
  for (int s = 0; s < 4; ++s) sigaction(SIGNALS[s], &old[s], nullptr);
  sigaltstack(&old_stack, nullptr);
  munmap(dynamic, whole + page);
  return result;
}
