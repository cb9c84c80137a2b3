// The threads of a block as fibers on one CPU thread: a stand-in for what runs them on a device.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

struct dim3 {
  unsigned int x, y, z;
  dim3(unsigned int x = 1, unsigned int y = 1, unsigned int z = 1) : x(x), y(y), z(z) {}
};

namespace on_host {

enum class State { kReady, kAtBarrier, kAtShuffle, kDone };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  dim3 index;
  State state = State::kReady;
  int shuffles = 0;
};

struct Block {
  ucontext_t scheduler;
  std::vector<Fiber> fibers;
  Fiber* running = nullptr;
  std::function<void()> kernel;
  std::vector<uint64_t> shuffled[2];  // two turns: a lane may be one shuffle ahead of another

  void pause(State state) {
    Fiber* self = running;
    self->state = state;
    swapcontext(&self->context, &scheduler);
  }
};
inline Block block;
inline dim3 block_size;

inline void fiber_main() {
  block.kernel();
  block.pause(State::kDone);
}

// Lets waiting fibers go on where all of their block or warp wait for the same; false on deadlock.
inline bool release() {
  std::vector<Fiber>& fibers = block.fibers;
  const auto all = [&](size_t begin, size_t end, State state) {
    return std::all_of(fibers.begin() + begin, fibers.begin() + end,
                       [=](const Fiber& fiber) { return fiber.state == state; });
  };
  bool progress = false;
  const auto ready = [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) fibers[i].state = State::kReady;
    progress = true;
  };
  if (all(0, fibers.size(), State::kAtBarrier)) ready(0, fibers.size());
  for (size_t warp = 0; warp < fibers.size(); warp += 32) {
    if (all(warp, warp + 32, State::kAtShuffle)) ready(warp, warp + 32);
  }
  return progress;
}

// Runs the kernel in all threads of a block, as they come by `draw`; false on deadlock.
inline bool run_block(std::mt19937& draw) {
  constexpr size_t kStack = 64 * 1024;
  block.fibers.resize(block_size.x);
  for (auto& turn : block.shuffled) turn.assign(block_size.x, 0);
  for (unsigned int i = 0; i < block_size.x; ++i) {
    Fiber& fiber = block.fibers[i];
    if (!fiber.stack) fiber.stack.reset(new char[kStack]);
    fiber.index = dim3(i, 0, 0);
    fiber.state = State::kReady;
    fiber.shuffles = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    makecontext(&fiber.context, fiber_main, 0);
  }
  std::vector<size_t> order(block_size.x);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), draw);
  for (;;) {
    for (const size_t i : order) {
      if (block.fibers[i].state != State::kReady) continue;
      block.running = &block.fibers[i];
      swapcontext(&block.scheduler, &block.running->context);
    }
    const bool done = std::all_of(block.fibers.begin(), block.fibers.end(),
                                  [](const Fiber& fiber) { return fiber.state == State::kDone; });
    if (done) return true;
    if (!release()) return false;
  }
}

// What lane `source` of the warp has.
template <class T>
T shuffle(T value, unsigned int source) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  Fiber* self = block.running;
  const int turn = self->shuffles++ % 2;
  const unsigned int warp = self->index.x / 32 * 32;
  std::memcpy(&block.shuffled[turn][self->index.x], &value, sizeof(T));
  block.pause(State::kAtShuffle);
  std::memcpy(&value, &block.shuffled[turn][warp + source], sizeof(T));
  return value;
}

template <class T>
T shuffle_down(T value, int step) {
  const unsigned int lane = block.running->index.x % 32;
  return shuffle(value, lane + step < 32 ? lane + step : lane);
}

}  // namespace on_host
