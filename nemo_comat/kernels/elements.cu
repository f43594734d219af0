// What the kernels share: the types of their inputs, -inf, and lengths of either size. cuda.py puts it before each.

#ifndef EMULATED
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

__device__ __forceinline__ float half_to_float(unsigned short half) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
    return value;
}

template <typename Unit>
__device__ __forceinline__ Unit read_global(const Unit* from) {
    return *from;
}
#endif  // EMULATED

struct Half {
    unsigned short bits;
};
struct Bfloat {
    unsigned short bits;
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(Half x) { return half_to_float(x.bits); }
__device__ __forceinline__ float to_float(Bfloat x) { return __uint_as_float((unsigned)x.bits << 16); }

__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }
// The exponent is all ones in infinities and NaN.
__device__ __forceinline__ bool is_finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }

__device__ __forceinline__ int ceil_div(int a, int b) { return (a + b - 1) / b; }

__device__ __forceinline__ long long integer_at(const void* integers, long long at, int bytes) {
    return bytes == 8 ? ((const long long*)integers)[at] : ((const int*)integers)[at];
}
