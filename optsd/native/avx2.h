// Registers of 256 bits: AVX2 and FMA; with AVX-VNNI where the compiler is told that it is there.

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int64_t LANES = 8;              // floats in a register
constexpr int64_t ROWS = 6, VECTORS = 2;  // of one product's sums: with 2 of B, 1 of A and 1 more they fill the 16

using Floats = __m256;
using Ints = __m256i;
using Words = __m256i;
using Lanes = int64_t;  // how many of a register's places are meant, from the first on
using Flags = __m256;

Lanes first(int64_t lanes) { return lanes; }

__m256i mask(Lanes lanes) {
    alignas(32) static const int32_t ends[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(ends + LANES - lanes));
}

__m256i load_bits(const void* x) { return _mm256_loadu_si256(static_cast<const __m256i*>(x)); }
void store_bits(void* x, __m256i value) { _mm256_storeu_si256(static_cast<__m256i*>(x), value); }

Floats load(const float* x) { return _mm256_loadu_ps(x); }
Ints load(const int32_t* x) { return load_bits(x); }
Words load(const uint32_t* x) { return load_bits(x); }
Floats load(Lanes lanes, const float* x) { return _mm256_maskload_ps(x, mask(lanes)); }
Ints load(Lanes lanes, const int32_t* x) { return _mm256_maskload_epi32(x, mask(lanes)); }
void store(float* x, Floats value) { _mm256_storeu_ps(x, value); }
void store(int32_t* x, Ints value) { store_bits(x, value); }

Floats everywhere(float x) { return _mm256_set1_ps(x); }
Ints everywhere(int32_t x) { return _mm256_set1_epi32(x); }
Words everywhere(uint32_t x) { return _mm256_set1_epi32(static_cast<int32_t>(x)); }

Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
Floats lower(Floats a, Floats b) { return _mm256_min_ps(a, b); }   // b where one is NaN
Floats higher(Floats a, Floats b) { return _mm256_max_ps(a, b); }  // b where one is NaN
Floats absolute(Floats x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
Floats square_root(Floats x) { return _mm256_sqrt_ps(x); }
Floats rounded(Floats x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
Floats times_power_of_two(Floats x, Floats whole) {  // -126 at least
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127));
    return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}
Floats where_negative(Floats x, Floats then, Floats otherwise) {
    return _mm256_blendv_ps(otherwise, then, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_LT_OQ));
}
template <typename F>
float folded(Floats x, const F& f) {
    const __m128 four = f(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = f(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(f(two, _mm_movehdup_ps(two)));
}
float lowest_of(Floats x) { return folded(x, [](__m128 a, __m128 b) { return _mm_min_ps(a, b); }); }
float highest_of(Floats x) { return folded(x, [](__m128 a, __m128 b) { return _mm_max_ps(a, b); }); }
float total_of(Floats x) { return folded(x, [](__m128 a, __m128 b) { return _mm_add_ps(a, b); }); }
Flags is_nan(Floats x) { return _mm256_cmp_ps(x, x, _CMP_UNORD_Q); }
Flags either(Flags a, Flags b) { return _mm256_or_ps(a, b); }
bool any(Flags flags) { return _mm256_movemask_ps(flags); }

Floats to_floats(Ints x) { return _mm256_cvtepi32_ps(x); }
Ints bits_of(Floats x) { return _mm256_castps_si256(x); }
Ints difference(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
Ints product(Ints a, Ints b) { return _mm256_mullo_epi32(a, b); }

// The low 16 bits of 8 integers of 0…65535, side by side.
__m128i narrowed(__m256i x) { return _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)); }

struct Float32 {
    using Value = float;
    using Factor = Float32;
    using Sum = float;
    using Sums = Floats;
    static constexpr int64_t PER_WORD = 1;
    static float factor(float x) { return x; }
    static Floats load(const float* x) { return _mm256_loadu_ps(x); }
    static Floats load(Lanes lanes, const float* x) { return lanes < LANES ? ::load(lanes, x) : load(x); }
    static void store(float* x, Lanes lanes, Floats value) {
        if (lanes < LANES)
            _mm256_maskstore_ps(x, mask(lanes), value);
        else
            _mm256_storeu_ps(x, value);
    }
    static Floats add_product(Floats sum, Words a, Words b) {
        return _mm256_fmadd_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), sum);
    }
};

struct BFloat16 {
    using Value = uint16_t;
    using Factor = Float32;  // there is no product of two bfloat16
    static float factor(uint16_t x) {
        const uint32_t bits = uint32_t(x) << 16;
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    }
    static Floats load(const uint16_t* x) {
        const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
    }
    static Floats load(Lanes lanes, const uint16_t* x) {
        if (lanes == LANES) return load(x);
        uint16_t whole[LANES] = {};
        std::memcpy(whole, x, lanes * sizeof *x);
        return load(whole);
    }
    static void store(uint16_t* x, Lanes lanes, Floats value) {
        // to the nearest, and to the even one of two; a NaN, whose last bits may be all that makes it one, stays one
        const __m256i bits = bits_of(value), high = _mm256_srli_epi32(bits, 16);
        const __m256i half = _mm256_add_epi32(_mm256_set1_epi32(0x7fff), _mm256_and_si256(high, _mm256_set1_epi32(1)));
        const __m256i nearest = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
        const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
        const __m128i narrow = narrowed(_mm256_blendv_epi8(nearest, quiet, _mm256_castps_si256(is_nan(value))));
        if (lanes == LANES) return _mm_storeu_si128(reinterpret_cast<__m128i*>(x), narrow);
        uint16_t whole[LANES];
        _mm_storeu_si128(reinterpret_cast<__m128i*>(whole), narrow);
        std::memcpy(x, whole, lanes * sizeof *x);
    }
};

// Two rows of 16 numbers of 16 bits, laced: pairs, as two registers of words.
void lace_pairs(__m256i a, __m256i b, uint32_t* words) {
    const __m256i low = _mm256_unpacklo_epi16(a, b), high = _mm256_unpackhi_epi16(a, b);  // within lanes of 128 bits
    store_bits(words, _mm256_permute2x128_si256(low, high, 0x20));
    store_bits(words + LANES, _mm256_permute2x128_si256(low, high, 0x31));
}

struct Bytes {  // the low bytes of integers
    using Value = uint8_t;
    static void store(uint8_t* x, Lanes lanes, Ints value) {
        const __m128i shorts = narrowed(_mm256_and_si256(value, _mm256_set1_epi32(255)));
        const int64_t bytes = _mm_cvtsi128_si64(_mm_packus_epi16(shorts, shorts));
        std::memcpy(x, &bytes, lanes);
    }
};

// The low bytes again, widened to 16 bits.
struct Shorts {
    using Value = int16_t;
    static void store(int16_t* x, Lanes lanes, Ints value) {
        const __m128i shorts = narrowed(_mm256_and_si256(value, _mm256_set1_epi32(255)));
        if (lanes == LANES) return _mm_storeu_si128(reinterpret_cast<__m128i*>(x), shorts);
        int16_t whole[LANES];
        _mm_storeu_si128(reinterpret_cast<__m128i*>(whole), shorts);
        std::memcpy(x, whole, lanes * sizeof *x);
    }
};

#ifdef __AVXVNNI__
using Factors = Bytes;
#else
using Factors = Shorts;
#endif

struct Integers : Factors {
    using Sum = int32_t;
    using Sums = Ints;
    using Weights = __m256i;  // of 16 bits: those of one input for a tile's 16 outputs

    // The high or the low halves of `count` bytes, with their sign, times as many integers; 0 beyond.
    static Weights unpack(const int8_t* packed, bool high, const int8_t* multipliers, int64_t count) {
        int8_t parts[2][16] = {};
        if (count < 16) {
            std::memcpy(parts[0], packed, count);
            std::memcpy(parts[1], multipliers, count);
            packed = parts[0], multipliers = parts[1];
        }
        __m256i value = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(packed)));
        value = high ? _mm256_srai_epi16(value, 4) : _mm256_srai_epi16(_mm256_slli_epi16(value, 12), 12);
        const __m128i by = _mm_loadu_si128(reinterpret_cast<const __m128i*>(multipliers));
        return _mm256_mullo_epi16(value, _mm256_cvtepi8_epi16(by));
    }

#ifdef __AVXVNNI__  // unsigned bytes times signed ones, four to a word
    using Signed = int8_t;
    static constexpr int64_t PER_WORD = 4;
    static Ints add_product(Ints sum, Words a, Words b) { return _mm256_dpbusd_avx_epi32(sum, a, b); }

    // Weights that lie as `optsd.native.pack` leaves them, as words of this product: they are.
    static const uint32_t* words_of(const int8_t* packed, int64_t, int64_t, uint32_t*) {
        return reinterpret_cast<const uint32_t*>(packed);
    }

    // Words of four inputs' weights.
    static void lace(const Weights (&inputs)[4], int64_t, uint32_t* words) {
        const __m256i low = _mm256_set1_epi16(255);
        const auto bytes = [&](__m256i a, __m256i b) {
            return _mm256_or_si256(_mm256_and_si256(a, low), _mm256_slli_epi16(b, 8));
        };
        lace_pairs(bytes(inputs[0], inputs[1]), bytes(inputs[2], inputs[3]), words);
    }
#else  // 16 bits times 16, two to a word: the product of bytes that AVX2 has saturates its sums
    using Signed = int16_t;
    static constexpr int64_t PER_WORD = 2;
    static Ints add_product(Ints sum, Words a, Words b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }

    // Weights of `inputs` × `columns` that lie as `optsd.native.pack` leaves them, as words of this product.
    static const uint32_t* words_of(const int8_t* packed, int64_t inputs, int64_t columns, uint32_t* words) {
        const auto half = [](__m256i four, char from) {  // bytes `from` and `from` + 1 of each word, widened
            const char b = static_cast<char>(from + 1);
            const __m256i order = _mm256_setr_epi8(
                -1, from, -1, b, -1, from + 4, -1, b + 4, -1, from + 8, -1, b + 8, -1, from + 12, -1, b + 12,  //
                -1, from, -1, b, -1, from + 4, -1, b + 4, -1, from + 8, -1, b + 8, -1, from + 12, -1, b + 12);
            return _mm256_srai_epi16(_mm256_shuffle_epi8(four, order), 8);
        };
        for (int64_t i = 0; i < inputs * columns; i += 4 * columns)
            for (int64_t column = 0; column < columns; column += LANES) {
                const __m256i four = load_bits(packed + i + 4 * column);
                store_bits(words + i / 2 + column, half(four, 0));
                store_bits(words + i / 2 + columns + column, half(four, 2));
            }
        return words;
    }

    // Words of four inputs' weights, two by two.
    static void lace(const Weights (&inputs)[4], int64_t columns, uint32_t* words) {
        lace_pairs(inputs[0], inputs[1], words);
        lace_pairs(inputs[2], inputs[3], words + columns);
    }
#endif
};

}  // namespace
