// Builds every kernel once per instruction set, and picks the best build for this processor.
#include "kernels.hpp"

#include <cmath>
#include <cstring>

#if !defined(__GNUC__) && !defined(__clang__)
#error "these kernels need the vector extensions of GCC 12 or Clang"
#endif

#define FS_INLINE static inline __attribute__((always_inline))
// Index of element i (0..3 of a, 4..7 of b) of the 128-bit lane that starts at `base`, as a shuffle counts it.
#define FS_L8(i, base) ((i) < 4 ? (base) + (i) : 8 + (base) + (i)-4)
#define FS_L16(i, base) ((i) < 4 ? (base) + (i) : 16 + (base) + (i)-4)

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors never cross a call that is not inlined
#endif

#define FS_WIDTH 4
#define FS_NAME "portable"
namespace fedsparsify::portable {
#include "all.inc"
}
#undef FS_WIDTH
#undef FS_NAME

#if defined(__x86_64__)
#define FS_X86 1

#define FS_WIDTH 8
#define FS_NAME "avx2"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
namespace fedsparsify::avx2 {
#include "all.inc"
}
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef FS_WIDTH
#undef FS_NAME

#define FS_WIDTH 16
#define FS_NAME "avx512"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx2,fma,prefer-vector-width=512")
#endif
namespace fedsparsify::avx512 {
#include "all.inc"
}
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef FS_WIDTH
#undef FS_NAME
#endif

namespace fedsparsify {

const Kernels* find_kernels(const char* name) {
    const bool any = *name == '\0';
#if defined(FS_X86)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && (any || std::strcmp(name, "avx512") == 0)) return &avx512::table;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && (any || std::strcmp(name, "avx2") == 0))
        return &avx2::table;
#endif
    return any || std::strcmp(name, "portable") == 0 ? &portable::table : nullptr;
}

}  // namespace fedsparsify
