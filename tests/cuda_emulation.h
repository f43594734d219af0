// Runs a CUDA kernel's source on the CPU: the threads of a block are fibers, which a seeded scheduler runs in random order
// from one barrier to the next. It is stricter than a GPU: shared memory starts as garbage, asynchronous copies spoil their
// destination at once and land only when they are waited for (or, with some seeds, at once), reads of global memory are
// checked against a map of what may be read, and a barrier that some threads never reach is reported.
// x86-64 or any other platform with ucontext.
#pragma once
#define EMULATED

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#define __device__
#define __forceinline__ inline
#define DYNAMIC_SHARED(name) unsigned char* name = emulation::block->shared.get()
#define threadIdx (emulation::block->thread_index())
#define blockIdx (emulation::block->block_index())
#define blockDim (emulation::block->block_size())

using std::max;
using std::min;

struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }

namespace emulation {

struct Index {
    int x;
};

struct Copy {
    void* to;
    const void* from;
    int valid, bytes;
};

enum State { READY, AT_BLOCK_BARRIER, AT_WARP_BARRIER, DONE };

struct Thread {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    State state = READY;
    unsigned exchanges = 0;
    std::vector<Copy> open_group;
    std::vector<std::vector<Copy>> groups;
};

// What may be read of the scores: one byte of `allowed` for each byte from `low` on. Nothing is checked without a map.
struct Readable {
    const char* low;
    const unsigned char* allowed;
    long long bytes;
};

struct Block {
    static constexpr int STACK = 256 << 10;

    std::vector<Thread> threads;
    std::unique_ptr<unsigned char[]> shared;
    std::vector<unsigned> exchanged;
    std::mt19937_64 random;
    Readable readable;
    std::function<void()> kernel;
    ucontext_t scheduler;
    std::string error;
    std::vector<uint64_t> priority;
    int current = 0, index = 0;
    bool in_order;

    Block(int block_index, int thread_count, int shared_bytes, uint64_t seed, Readable map, std::function<void()> body)
        : threads(thread_count), shared(new unsigned char[shared_bytes]), exchanged(thread_count * 2), random(seed),
          readable(map), kernel(body), priority((thread_count + 31) / 32), index(block_index), in_order(random() % 2) {
        // NaN, or a large finite number
        memset(shared.get(), seed & 1 ? 0xff : 0x7e, shared_bytes);
        for (uint64_t& first_come : priority) first_come = random();
    }

    Index thread_index() const { return {current}; }
    Index block_index() const { return {index}; }
    Index block_size() const { return {(int)threads.size()}; }

    void fail(const std::string& message) {
        if (error.empty()) error = message;
        threads[current].state = DONE;
        swapcontext(&threads[current].context, &scheduler);
    }

    void yield(State state) {
        threads[current].state = state;
        swapcontext(&threads[current].context, &scheduler);
    }

    // The next warp to run: any, or the one that comes first in an order that changes now and then, so that it runs as
    // far ahead of the others as the barriers let it. -1 where no thread is ready.
    int choose_warp() {
        const int warps = (threads.size() + 31) / 32;
        int chosen = -1, seen = 0;
        if (random() % 64 == 0) priority[random() % warps] = random();
        for (int warp = 0; warp < warps; ++warp)
            if (count(warp, READY) && (in_order ? chosen < 0 || priority[warp] > priority[chosen] : random() % ++seen == 0))
                chosen = warp;
        return chosen;
    }

    int count(int warp, State state) const {
        int number = 0;
        for (int i = 32 * warp; i < min(32 * warp + 32, (int)threads.size()); ++i) number += threads[i].state == state;
        return number;
    }

    void release(int begin, int end, State waiting) {
        for (int i = begin; i < end; ++i)
            if (threads[i].state == waiting) threads[i].state = READY;
    }

    void release_barriers(int warp) {
        const int warps = (threads.size() + 31) / 32;
        if (count(warp, AT_WARP_BARRIER) == 32) release(32 * warp, 32 * warp + 32, AT_WARP_BARRIER);
        int waiting = 0, done = 0;
        for (int i = 0; i < warps; ++i) waiting += count(i, AT_BLOCK_BARRIER), done += count(i, DONE);
        if (waiting + done == (int)threads.size()) release(0, threads.size(), AT_BLOCK_BARRIER);
    }

    std::string run();
};

inline Block* block = nullptr;

inline void enter() {
    block->kernel();
    block->yield(DONE);
}

inline std::string Block::run() {
    block = this;
    for (Thread& thread : threads) {
        thread.stack.reset(new char[STACK]);
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.get();
        thread.context.uc_stack.ss_size = STACK;
        makecontext(&thread.context, enter, 0);
    }
    for (int warp = choose_warp(); warp >= 0 && error.empty(); warp = choose_warp()) {
        // its lanes in any order, now and then only some of them
        const int first = random() % 32, step = random() % 2 ? 1 : 31, lanes = random() % 16 ? 32 : random() % 32 + 1;
        for (int i = 0; i < lanes && error.empty(); ++i) {
            current = 32 * warp + (first + i * step) % 32;
            if (threads[current].state == READY) swapcontext(&scheduler, &threads[current].context);
        }
        release_barriers(warp);
    }
    for (int i = 0; i < (int)threads.size() && error.empty(); ++i) {
        if (threads[i].state != DONE) error = "deadlock: thread " + std::to_string(i) + " waits for ever at a barrier";
        if (!threads[i].open_group.empty()) error = "thread " + std::to_string(i) + " ended with copies not committed";
    }
    return error;
}

inline void check_readable(const void* from, int bytes) {
    const Readable& map = block->readable;
    const long long at = (const char*)from - map.low;
    for (long long i = at; map.allowed && i < at + bytes; ++i)
        if (i < 0 || i >= map.bytes || !map.allowed[i])
            return block->fail("read of a score that is no row's: byte " + std::to_string(i));
}

inline void land(const Copy& copy) {
    memset(copy.to, 0, copy.bytes);
    memcpy(copy.to, copy.from, copy.valid);
}

inline std::string launch(int blocks, int threads, int shared_bytes, uint64_t seed, Readable map, std::function<void()> body) {
    for (int i = 0; i < blocks; ++i) {
        const std::string error = Block(i, threads, shared_bytes, seed * 1000003 + i, map, body).run();
        if (!error.empty()) return "block " + std::to_string(i) + ": " + error;
    }
    return "";
}

}  // namespace emulation

inline void __syncthreads() { emulation::block->yield(emulation::AT_BLOCK_BARRIER); }
inline void __syncwarp() { emulation::block->yield(emulation::AT_WARP_BARRIER); }

// The bits that lane `from` of the warp gives.
inline unsigned exchange(unsigned mask, unsigned bits, int from) {
    emulation::Block& block = *emulation::block;
    const int thread = block.current, parity = block.threads[thread].exchanges++ % 2;
    if (mask != ~0u) block.fail("only whole warps exchange values here");
    block.exchanged[2 * thread + parity] = bits;
    __syncwarp();
    return block.exchanged[2 * (thread / 32 * 32 + (from & 31)) + parity];
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)((((uint64_t)high << 32 | low) << (shift & 31)) >> 32);
}
inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

inline float __shfl_up_sync(unsigned mask, float value, unsigned delta) {
    const int lane = threadIdx.x % 32;
    return __uint_as_float(exchange(mask, __float_as_uint(value), lane < (int)delta ? lane : lane - (int)delta));
}
inline unsigned __shfl_sync(unsigned mask, unsigned value, int from) { return exchange(mask, value, from); }

inline float half_to_float(unsigned short half) {
    const unsigned sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, fraction = half & 0x3ffu;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | fraction << 13);
    const float value = exponent ? ldexpf(1024 + fraction, (int)exponent - 25) : ldexpf(fraction, -24);
    return sign ? -value : value;
}

template <typename Unit>
inline Unit read_global(const Unit* from) {
    emulation::check_readable(from, sizeof(Unit));
    if ((uintptr_t)from % sizeof(Unit)) emulation::block->fail("misaligned read of global memory");
    Unit unit;
    memcpy(&unit, from, sizeof(Unit));
    return unit;
}

template <int BYTES>
inline void copy_async(void* to, const void* from, int valid) {
    emulation::Block& block = *emulation::block;
    if (valid < 0 || valid > BYTES) block.fail("an asynchronous copy of " + std::to_string(valid) + " bytes");
    if ((uintptr_t)to % BYTES || (uintptr_t)from % BYTES) block.fail("misaligned asynchronous copy");
    emulation::check_readable(from, valid);
    memset(to, 0xff, BYTES);
    const emulation::Copy copy = {to, from, valid, BYTES};
    if (block.random() % 8 == 0)
        emulation::land(copy);
    else
        block.threads[block.current].open_group.push_back(copy);
}

inline void commit_copies() {
    emulation::Thread& thread = emulation::block->threads[emulation::block->current];
    thread.groups.push_back(thread.open_group);
    thread.open_group.clear();
}

template <int PENDING>
inline void wait_for_copies() {
    std::vector<std::vector<emulation::Copy>>& groups = emulation::block->threads[emulation::block->current].groups;
    while (groups.size() > PENDING) {
        for (const emulation::Copy& copy : groups.front()) emulation::land(copy);
        groups.erase(groups.begin());
    }
}
