// The CPU's own kernels, for AVX-512 with VNNI and BF16: quantized activations and layers, group normalization with
// SiLU, GEGLU and flash attention.
//
// Plain C functions over addresses, so that they compile in a second or two, without torch's headers. __init__.py
// checks shapes, types and the processor, compiles this file and calls it.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>

namespace {

constexpr int64_t LANES = 16;  // floats in a register
const float INFINITE = std::numeric_limits<float>::infinity();

struct Free {
    void operator()(void* memory) const { std::free(memory); }
};
template <typename T>
using Buffer = std::unique_ptr<T[], Free>;

template <typename T>
Buffer<T> allocate(int64_t count) {
    const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
    return Buffer<T>(static_cast<T*>(std::aligned_alloc(64, bytes)));
}

// Threads for so many numbers: below 16,384 starting them takes longer than the work.
int threads_for(int64_t numbers, int threads) { return numbers < 16384 ? 1 : threads; }

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

__mmask16 first(int64_t lanes) { return static_cast<__mmask16>((1u << lanes) - 1); }

__m512 load(const float* x) { return _mm512_loadu_ps(x); }
__m512i load(const int32_t* x) { return _mm512_loadu_si512(x); }
void store(float* x, __m512 value) { _mm512_storeu_ps(x, value); }
void store(int32_t* x, __m512i value) { _mm512_storeu_si512(x, value); }

// The types of numbers. A product takes what 32 bits hold at once, PER_WORD numbers, and adds it to a Sum; a register
// holds 16 Sums.

struct Float32 {
    using Value = float;
    using Sum = float;
    using Sums = __m512;
    static constexpr int64_t PER_WORD = 1;
    static __m512 load(const float* x) { return _mm512_loadu_ps(x); }
    static __m512 load(__mmask16 lanes, const float* x) { return _mm512_maskz_loadu_ps(lanes, x); }
    static void store(float* x, __mmask16 lanes, __m512 value) { _mm512_mask_storeu_ps(x, lanes, value); }
    static __m512 add_product(__m512 sum, __m512i a, __m512i b) {
        return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
    }
};

struct BFloat16 {
    using Value = uint16_t;
    using Sum = float;
    using Sums = __m512;
    static constexpr int64_t PER_WORD = 2;
    static __m512 widen(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
    static __m512 load(const uint16_t* x) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x))); }
    static __m512 load(__mmask16 lanes, const uint16_t* x) { return widen(_mm256_maskz_loadu_epi16(lanes, x)); }
    static void store(uint16_t* x, __mmask16 lanes, __m512 value) {
        _mm256_mask_storeu_epi16(x, lanes, (__m256i)_mm512_cvtneps_pbh(value));
    }
    static __m512 add_product(__m512 sum, __m512i a, __m512i b) {
        return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
    }
};

struct Bytes {  // unsigned times signed
    using Sum = int32_t;
    using Sums = __m512i;
    static __m512i add_product(__m512i sum, __m512i a, __m512i b) { return _mm512_dpbusd_epi32(sum, a, b); }
};

// Without it compilers spill the sums of a loop that they unroll too late.
#define UNROLLED _Pragma("GCC unroll 8")

// C (ROWS × 16·VECTORS sums) = or += A · B (words × columns). All sums stay in registers. A's rows come in `parts` of
// `words`: row i of part j begins at a[j · a_step + i], plus `from`.
template <typename Type, int ROWS, int VECTORS>
void multiply(const uint32_t* const* a, int64_t a_step, int64_t parts, int64_t from, const uint32_t* b, int64_t b_row,
              typename Type::Sum* c, int64_t c_row, int64_t words, bool add) {
    typename Type::Sums sums[ROWS][VECTORS];
    UNROLLED for (int row = 0; row < ROWS; row++)
        UNROLLED for (int vector = 0; vector < VECTORS; vector++)
            sums[row][vector] = add ? load(c + row * c_row + vector * LANES) : typename Type::Sums{};
    for (int64_t part = 0; part < parts; part++, a += a_step) {
        const uint32_t* lines[ROWS];
        UNROLLED for (int row = 0; row < ROWS; row++) lines[row] = a[row] + from;
        for (int64_t word = 0; word < words; word++, b += b_row) {
            __m512i right[VECTORS];
            UNROLLED for (int vector = 0; vector < VECTORS; vector++)
                right[vector] = _mm512_loadu_si512(b + vector * LANES);
            UNROLLED for (int row = 0; row < ROWS; row++) {
                const __m512i left = _mm512_set1_epi32(lines[row][word]);
                UNROLLED for (int vector = 0; vector < VECTORS; vector++)
                    sums[row][vector] = Type::add_product(sums[row][vector], left, right[vector]);
            }
        }
    }
    UNROLLED for (int row = 0; row < ROWS; row++)
        UNROLLED for (int vector = 0; vector < VECTORS; vector++)
            store(c + row * c_row + vector * LANES, sums[row][vector]);
}

constexpr int64_t ROWS = 6;  // of one `multiply`: 6 × 4 sums, 4 of B and 1 of A fill the 32 registers

template <typename Type, int ROWS>
auto multiply_of(int64_t vectors) {
    return vectors == 4   ? multiply<Type, ROWS, 4>
           : vectors == 3 ? multiply<Type, ROWS, 3>
           : vectors == 2 ? multiply<Type, ROWS, 2>
                          : multiply<Type, ROWS, 1>;
}

// ---------------------------------------------------------------------------------------------- quantized activations

template <typename Type>
void find_range(const typename Type::Value* x, int64_t count, int threads, float* range) {
    float lowest = 0, highest = 0;
    bool is_a_number = true;
    threads = threads_for(count, threads);
#pragma omp parallel for num_threads(threads) reduction(min : lowest) reduction(max : highest) \
    reduction(&& : is_a_number)
    for (int thread = 0; thread < threads; thread++) {
        const int64_t share = round_up((count + threads - 1) / threads, 4 * LANES);
        const int64_t begin = std::min(count, thread * share), end = std::min(count, begin + share);
        __m512 low[4], high[4];
        __mmask16 nan = 0;
        for (int part = 0; part < 4; part++) low[part] = high[part] = _mm512_setzero_ps();
        int64_t i = begin;
        for (; i + 4 * LANES <= end; i += 4 * LANES)
            for (int part = 0; part < 4; part++) {
                const __m512 value = Type::load(x + i + part * LANES);
                low[part] = _mm512_min_ps(low[part], value);
                high[part] = _mm512_max_ps(high[part], value);
                nan |= _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
            }
        for (; i < end; i += LANES) {
            const __m512 value = Type::load(first(std::min(end - i, LANES)), x + i);
            low[0] = _mm512_min_ps(low[0], value);
            high[0] = _mm512_max_ps(high[0], value);
            nan |= _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
        }
        for (int part = 0; part < 4; part++) {
            lowest = std::min(lowest, _mm512_reduce_min_ps(low[part]));
            highest = std::max(highest, _mm512_reduce_max_ps(high[part]));
        }
        is_a_number = is_a_number && !nan;
    }
    range[0] = is_a_number ? lowest : NAN;
    range[1] = is_a_number ? highest : NAN;
}

template <typename Type>
void quantize(const typename Type::Value* x, int64_t count, float factor, float shift, int threads, uint8_t* out) {
    const __m512 by = _mm512_set1_ps(factor), plus = _mm512_set1_ps(shift);
#pragma omp parallel for num_threads(threads_for(count, threads))
    for (int64_t i = 0; i < count; i += LANES) {
        const __mmask16 lanes = count - i < LANES ? first(count - i) : 0xffff;
        const __m512 sum = _mm512_fmadd_ps(Type::load(lanes, x + i), by, plus);
        _mm512_mask_cvtepi32_storeu_epi8(out + i, lanes, _mm512_castps_si512(sum));
    }
}

// -------------------------------------------------------------------------------------------------- quantized layers

constexpr int64_t PANEL = 4 * LANES;  // outputs of one item of work
constexpr int64_t SHARE = 64 * ROWS;  // pixels of one item of work: their sums stay in the second-level cache,
constexpr int64_t BLOCK = 2048;       // and so do PANEL × BLOCK weights

// Of a panel's outputs, side by side; a word holds the weights of four inputs for one output.
struct Int8Weights {
    const int8_t* packed;
    int64_t inputs;

    const uint32_t* block(int64_t output, int64_t columns, int64_t input, int64_t) const {
        return reinterpret_cast<const uint32_t*>(packed + output * inputs + input * columns);
    }
};

// inputs × outputs, two to a byte: the low half is input i, the high half input `half` + i.
struct Int4Weights {
    const int8_t* packed;
    const int8_t* multipliers;  // groups × outputs
    int64_t outputs, half, group;

    // Unpacked as Int8Weights are, until this thread's next call.
    const uint32_t* block(int64_t output, int64_t columns, int64_t input, int64_t inputs) const {
        alignas(64) static thread_local uint32_t unpacked[PANEL * BLOCK / 4];
        const int64_t real = std::min(columns, outputs - output);
        const __mmask64 there = real < 64 ? (__mmask64(1) << real) - 1 : ~__mmask64(0);
        // Before rows are laced into words, lane by lane of 128 bits: so that words come out in the order of outputs.
        const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        for (int64_t i = 0; i < inputs; i += 4) {
            __m512i rows[4];
            for (int64_t k = 0; k < 4; k++)
                rows[k] = _mm512_permutexvar_epi32(order, unpack(input + i + k, output, there));
            const __m512i low[2] = {_mm512_unpacklo_epi8(rows[0], rows[1]), _mm512_unpacklo_epi8(rows[2], rows[3])};
            const __m512i high[2] = {_mm512_unpackhi_epi8(rows[0], rows[1]), _mm512_unpackhi_epi8(rows[2], rows[3])};
            const __m512i words[4] = {
                _mm512_unpacklo_epi16(low[0], low[1]), _mm512_unpackhi_epi16(low[0], low[1]),
                _mm512_unpacklo_epi16(high[0], high[1]), _mm512_unpackhi_epi16(high[0], high[1])};
            for (int64_t vector = 0; vector < columns / LANES; vector++)
                _mm512_storeu_si512(unpacked + i / 4 * columns + vector * LANES, words[vector]);
        }
        return unpacked;
    }

    // The weights of one input for 64 outputs, times its group's integers.
    __m512i unpack(int64_t input, int64_t output, __mmask64 there) const {
        if (input >= 2 * half) return _mm512_setzero_si512();
        const int64_t row = input < half ? input : input - half;
        __m512i value = _mm512_maskz_loadu_epi8(there, packed + row * outputs + output);
        if (input >= half) value = _mm512_srli_epi16(value, 4);
        const __m512i sign = _mm512_set1_epi8(8);
        value = _mm512_and_si512(value, _mm512_set1_epi8(15));
        value = _mm512_sub_epi8(_mm512_xor_si512(value, sign), sign);
        const __m512i by = _mm512_maskz_loadu_epi8(there, multipliers + input / group * outputs + output);
        // There is no product of bytes: the low bytes of products of 16 bits, even and odd ones in turn.
        const __m512i odd = _mm512_mullo_epi16(_mm512_srli_epi16(value, 8), _mm512_srli_epi16(by, 8));
        return _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaa, _mm512_mullo_epi16(value, by), _mm512_slli_epi16(odd, 8));
    }
};

struct Picture {
    const uint8_t* numbers;
    int64_t batch, height, width, channels;
};

struct Window {
    int64_t rows, columns, stride_y, stride_x, dilation_y, dilation_x, top, left, out_height, out_width;
};

// For each place in the window, and for each pixel of the result, its line of channels; past the border, `border`.
Buffer<const uint32_t*> find_lines(const Picture& picture, const Window& window, const uint8_t* border, int64_t step) {
    const int64_t pixels = picture.batch * window.out_height * window.out_width;
    auto lines = allocate<const uint32_t*>(window.rows * window.columns * step);
    const auto words = [](const uint8_t* bytes) { return reinterpret_cast<const uint32_t*>(bytes); };
    for (int64_t place = 0; place < window.rows * window.columns; place++) {
        const uint32_t** line = lines.get() + place * step;
        std::fill(line + pixels, line + step, words(border));
        for (int64_t i = 0; i < picture.batch * window.out_height; i++) {
            const int64_t y = i % window.out_height * window.stride_y - window.top +
                              place / window.columns * window.dilation_y;
            const bool is_inside = y >= 0 && y < picture.height;
            const uint8_t* row = picture.numbers + (i / window.out_height * picture.height + y) * picture.width *
                                                       picture.channels;
            int64_t x = place % window.columns * window.dilation_x - window.left;
            for (int64_t j = 0; j < window.out_width; j++, x += window.stride_x)
                *line++ = words(is_inside && x >= 0 && x < picture.width ? row + x * picture.channels : border);
        }
    }
    return lines;
}

// What turns sums into numbers.
struct Scales {
    float scale;
    int zero_point;
    const float* weight_scale;
    const int32_t* column_sums;
    const float* bias;  // or null

    // rows × columns of sums to as many rows of `out`, whose outputs from the `output`th on they are.
    template <typename Type>
    void finish(const int32_t* sums, int64_t rows, int64_t columns, int64_t output, int64_t outputs,
                typename Type::Value* out) const {
        __m512i extra[4];
        __m512 factor[4], offset[4];
        __mmask16 lanes[4];
        const int64_t vectors = columns / LANES;
        for (int64_t i = 0; i < vectors; i++) {
            const int64_t at = output + i * LANES;
            lanes[i] = first(std::min(outputs - at, LANES));
            extra[i] = _mm512_mullo_epi32(_mm512_maskz_loadu_epi32(lanes[i], column_sums + at),
                                          _mm512_set1_epi32(zero_point));
            factor[i] = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes[i], weight_scale + at), _mm512_set1_ps(scale));
            offset[i] = bias ? _mm512_maskz_loadu_ps(lanes[i], bias + at) : _mm512_setzero_ps();
        }
        for (int64_t row = 0; row < rows; row++, sums += columns, out += outputs)
            for (int64_t i = 0; i < vectors; i++) {
                const __m512 exact = _mm512_cvtepi32_ps(_mm512_sub_epi32(load(sums + i * LANES), extra[i]));
                Type::store(out + output + i * LANES, lanes[i], _mm512_fmadd_ps(exact, factor[i], offset[i]));
            }
    }
};

template <typename Type, typename Weights>
void convolve(const Picture& picture, const Window& window, const Weights& weights, int64_t outputs,
              const Scales& scales, int threads, typename Type::Value* out) {
    const int64_t channels = picture.channels, places = window.rows * window.columns;
    const int64_t pixels = picture.batch * window.out_height * window.out_width;
    const auto border = allocate<uint8_t>(channels);
    std::fill_n(border.get(), channels, static_cast<uint8_t>(scales.zero_point));
    const int64_t step = round_up(pixels, 2);
    const auto lines = find_lines(picture, window, border.get(), step);

    // A block of weights is that of several places, or of a part of the channels of one.
    const int64_t block_places = std::max<int64_t>(1, BLOCK / channels);
    const int64_t parts = (channels + BLOCK - 1) / BLOCK, part = round_up((channels + parts - 1) / parts, 4);

    // Enough items that no thread waits long for the last one.
    const int64_t panels = (outputs + PANEL - 1) / PANEL;
    const int64_t shares = std::max((pixels + SHARE - 1) / SHARE, (8 * threads + panels - 1) / panels);
    const int64_t share = round_up((pixels + shares - 1) / shares, ROWS);
    const int64_t products = pixels * outputs * places * channels;  // 64 of them take as long as one number elsewhere
#pragma omp parallel for num_threads(threads_for(products / 64, threads)) schedule(dynamic)
    for (int64_t item = 0; item < panels * shares; item++) {
        const int64_t output = item / shares * PANEL, begin = item % shares * share;
        const int64_t count = std::min(share, pixels - begin);
        if (count <= 0) continue;
        // kept from call to call: fresh memory would have to be zeroed by the system
        alignas(64) static thread_local int32_t sums[SHARE * PANEL];
        const int64_t columns = std::min(PANEL, round_up(outputs - output, LANES));
        const auto six = multiply_of<Bytes, ROWS>(columns / LANES), two = multiply_of<Bytes, 2>(columns / LANES);
        for (int64_t place = 0; place < places; place += block_places)
            for (int64_t channel = 0; channel < channels; channel += part) {
                const int64_t here = std::min(block_places, places - place), width = std::min(part, channels - channel);
                const uint32_t* block = weights.block(output, columns, place * channels + channel, here * width);
                for (int64_t row = 0; row < count;) {
                    const bool is_whole = count - row >= ROWS;
                    (is_whole ? six : two)(lines.get() + place * step + begin + row, step, here, channel / 4, block,
                                           columns, sums + row * columns, columns, width / 4, place + channel > 0);
                    row += is_whole ? ROWS : 2;
                }
            }
        scales.finish<Type>(sums, count, columns, output, outputs, out + begin * outputs);
    }
}

// ------------------------------------------------------------------------------------------------------ exponentials

// 2^x for x <= 0, to 2e-7 of it; 0 and below stay above 2^-127.
__m512 power_of_two(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-127.0f), x);  // in this order: a NaN stays
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 part = _mm512_sub_ps(x, whole);
    // the Taylor series of 2^part, |part| <= 0.5
    __m512 sum = _mm512_set1_ps(1.3333558e-3f);
    for (const float coefficient : {9.6181291e-3f, 5.5504109e-2f, 0.24022651f, 0.69314718f, 1.0f})
        sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(coefficient));
    return _mm512_scalef_ps(sum, whole);
}

// x · Φ(x). Φ's tail is Abramowitz & Stegun's 7.1.26, off by 8e-8 at most.
__m512 gelu(__m512 x) {
    const __m512 z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678f));
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), one));
    __m512 sum = _mm512_set1_ps(1.061405429f);
    for (const float coefficient : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f, 0.0f})
        sum = _mm512_fmadd_ps(sum, t, _mm512_set1_ps(coefficient));
    const __m512 power = power_of_two(_mm512_mul_ps(_mm512_mul_ps(z, z), _mm512_set1_ps(-1.44269504f)));
    const __m512 tail = _mm512_mul_ps(_mm512_mul_ps(sum, power), _mm512_set1_ps(0.5f));
    const __mmask16 is_negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    return _mm512_mul_ps(x, _mm512_mask_mov_ps(_mm512_sub_ps(one, tail), is_negative, tail));
}

// x / (1 + e^-x)
__m512 silu(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 power = power_of_two(_mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(-1.44269504f)));
    const __mmask16 is_negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    const __m512 above = _mm512_mask_mov_ps(one, is_negative, power);
    return _mm512_mul_ps(x, _mm512_div_ps(above, _mm512_add_ps(one, power)));
}

// ----------------------------------------------------------------------------------------------- group normalization

// One image's channels from `from` to `to`, whole groups, of pixels × channels numbers.
template <typename Type>
void normalize_groups(const typename Type::Value* x, int64_t pixels, int64_t channels, int64_t from, int64_t to,
                      int64_t size, const typename Type::Value* weight, const typename Type::Value* bias, float eps,
                      typename Type::Value* out) {
    const int64_t width = round_up(to - from, LANES);
    const auto means = allocate<float>(width), sums = allocate<float>(width);
    // f(value, place in the line, lanes) for each number
    const auto each = [&](const auto& f) {
        for (int64_t pixel = 0; pixel < pixels; pixel++)
            for (int64_t i = 0; i < to - from; i += LANES) {
                const __mmask16 lanes = first(std::min(to - from - i, LANES));
                f(Type::load(lanes, x + pixel * channels + from + i), pixel, i, lanes);
            }
    };
    // each channel gets the mean of its group's sums
    const auto average = [&](float* result) {
        for (int64_t group = 0; group < to - from; group += size) {
            double total = 0;
            for (int64_t i = 0; i < size; i++) total += sums[group + i];
            std::fill_n(result + group, size, float(total / (pixels * size)));
        }
    };
    std::fill_n(sums.get(), width, 0.0f);
    each([&](__m512 value, int64_t, int64_t i, __mmask16) {
        store(sums.get() + i, _mm512_add_ps(load(sums.get() + i), value));
    });
    average(means.get());
    std::fill_n(sums.get(), width, 0.0f);
    each([&](__m512 value, int64_t, int64_t i, __mmask16) {
        const __m512 difference = _mm512_sub_ps(value, load(means.get() + i));
        store(sums.get() + i, _mm512_fmadd_ps(difference, difference, load(sums.get() + i)));
    });
    average(sums.get());
    // from here on: x · sums + means
    for (int64_t i = 0; i < to - from; i += LANES) {
        const __mmask16 lanes = first(std::min(to - from - i, LANES));
        const __m512 deviation = _mm512_sqrt_ps(_mm512_add_ps(load(sums.get() + i), _mm512_set1_ps(eps)));
        const __m512 factor = _mm512_div_ps(Type::load(lanes, weight + from + i), deviation);
        store(means.get() + i, _mm512_fnmadd_ps(load(means.get() + i), factor, Type::load(lanes, bias + from + i)));
        store(sums.get() + i, factor);
    }
    each([&](__m512 value, int64_t pixel, int64_t i, __mmask16 lanes) {
        const __m512 normal = _mm512_fmadd_ps(value, load(sums.get() + i), load(means.get() + i));
        Type::store(out + pixel * channels + from + i, lanes, silu(normal));
    });
}

// --------------------------------------------------------------------------------------------------- flash attention

constexpr int64_t QUERIES = 8 * ROWS;  // of one tile of scores
constexpr int64_t KEYS = 512;

template <typename Type>
void multiply_tile(const uint32_t* a, int64_t a_row, const uint32_t* b, int64_t b_row, float* c, int64_t c_row,
                   int64_t rows, int64_t columns, int64_t words, bool add) {
    for (int64_t column = 0; column < columns; column += 4 * LANES) {
        const auto run = multiply_of<Type, ROWS>(std::min<int64_t>(4, (columns - column) / LANES));
        for (int64_t row = 0; row < rows; row += ROWS) {
            const uint32_t* lines[ROWS];
            for (int64_t i = 0; i < ROWS; i++) lines[i] = a + (row + i) * a_row;
            run(lines, 0, 1, 0, b + column, b_row, c + row * c_row + column, c_row, words, add);
        }
    }
}

// The softmax of one tile's row, online (Milakov & Gimelshein, 2018): turns scores into weights and returns what the
// sums so far must be multiplied by.
template <typename Type>
float weigh(const float* scores, int64_t columns, float scale, typename Type::Value* weights, float& largest,
            float& total) {
    __m512 most = _mm512_set1_ps(largest);
    for (int64_t i = 0; i < columns; i += LANES) most = _mm512_max_ps(most, _mm512_loadu_ps(scores + i));
    const float before = largest;
    largest = _mm512_reduce_max_ps(most);
    const __m512 by = _mm512_set1_ps(scale), minus = _mm512_set1_ps(-largest * scale);
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < columns; i += LANES) {
        const __m512 weight = power_of_two(_mm512_fmadd_ps(_mm512_loadu_ps(scores + i), by, minus));
        sum = _mm512_add_ps(sum, weight);
        Type::store(weights + i, first(LANES), weight);
    }
    const float shrink = std::exp2((before - largest) * scale);
    total = total * shrink + _mm512_reduce_add_ps(sum);
    return shrink;
}

// A batch × heads × tokens × width; the last lie side by side.
struct Heads {
    const void* numbers;
    const int64_t* strides;

    template <typename Type>
    const typename Type::Value* at(int64_t image, int64_t head, int64_t token) const {
        const auto* start = static_cast<const typename Type::Value*>(numbers);
        return start + image * strides[0] + head * strides[1] + token * strides[2];
    }
};

template <typename Type>
void attend(Heads query, Heads key, Heads value, Heads out, int64_t batch, int64_t heads, int64_t queries,
            int64_t keys, int64_t width, float scale, int threads) {
    using Value = typename Type::Value;
    constexpr int64_t PER_WORD = Type::PER_WORD;
    const int64_t words = (width + PER_WORD - 1) / PER_WORD, columns = round_up(width, LANES);
    const int64_t padded_keys = round_up(keys, LANES);
    // Where there are more threads than heads, each head's queries are shared out.
    const int64_t shares = std::min((queries + QUERIES - 1) / QUERIES, (threads + batch * heads - 1) / (batch * heads));
    const int64_t share = round_up((queries + shares - 1) / shares, QUERIES);
    const float base_two = scale * 1.44269504f;  // exp(x) = 2^(x · log2 e)
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t item = 0; item < batch * heads * shares; item++) {
        const int64_t image = item / shares / heads, head = item / shares % heads;

        // Keys as words of channels × keys, values as words of keys × channels, zeros around both.
        const auto packed_keys = allocate<Value>(words * padded_keys * PER_WORD);
        const auto packed_values = allocate<Value>(padded_keys * columns);
        const auto packed_queries = allocate<Value>(QUERIES * words * PER_WORD);
        const auto weights = allocate<Value>(QUERIES * KEYS);
        const auto scores = allocate<float>(QUERIES * KEYS);
        const auto sums = allocate<float>(QUERIES * columns);
        std::fill_n(packed_keys.get(), words * padded_keys * PER_WORD, Value(0));
        std::fill_n(packed_values.get(), padded_keys * columns, Value(0));
        std::fill_n(packed_queries.get(), QUERIES * words * PER_WORD, Value(0));
        // sixteen keys at a time: the words of one lie 4 · padded_keys bytes apart, often in one set of the cache
        for (int64_t token = 0; token < keys; token += LANES)
            for (int64_t i = 0; i < width; i++)
                for (int64_t k = token; k < std::min(keys, token + LANES); k++)
                    packed_keys[(i / PER_WORD * padded_keys + k) * PER_WORD + i % PER_WORD] =
                        key.at<Type>(image, head, k)[i];
        for (int64_t token = 0; token < keys; token++) {
            const Value* row = value.at<Type>(image, head, token);
            Value* target = packed_values.get() + token / PER_WORD * columns * PER_WORD + token % PER_WORD;
            for (int64_t i = 0; i < width; i++) target[i * PER_WORD] = row[i];
        }
        const auto* key_words = reinterpret_cast<const uint32_t*>(packed_keys.get());
        const auto* value_words = reinterpret_cast<const uint32_t*>(packed_values.get());
        const auto* query_words = reinterpret_cast<const uint32_t*>(packed_queries.get());
        const auto* weight_words = reinterpret_cast<const uint32_t*>(weights.get());

        const int64_t last = std::min(queries, (item % shares + 1) * share);
        for (int64_t begin = item % shares * share; begin < last; begin += QUERIES) {
            const int64_t real = std::min(QUERIES, last - begin), rows = round_up(real, ROWS);
            for (int64_t row = 0; row < real; row++)
                std::copy_n(query.at<Type>(image, head, begin + row), width,
                            packed_queries.get() + row * words * PER_WORD);
            float largest[QUERIES], total[QUERIES];
            std::fill_n(largest, QUERIES, -INFINITE);
            std::fill_n(total, QUERIES, 0.0f);
            std::fill_n(sums.get(), QUERIES * columns, 0.0f);
            for (int64_t from = 0; from < keys; from += KEYS) {
                const int64_t there = std::min(KEYS, keys - from), wide = round_up(there, LANES);
                multiply_tile<Type>(query_words, words, key_words + from, padded_keys, scores.get(), KEYS, rows, wide,
                                    words, false);
                for (int64_t row = 0; row < rows; row++) {
                    float* line = scores.get() + row * KEYS;
                    std::fill(line + there, line + wide, -INFINITE);
                    Value* weight = weights.get() + row * KEYS;
                    const float shrink = weigh<Type>(line, wide, base_two, weight, largest[row], total[row]);
                    if (from)
                        for (int64_t i = 0; i < columns; i++) sums[row * columns + i] *= shrink;
                }
                multiply_tile<Type>(weight_words, KEYS / PER_WORD, value_words + from / PER_WORD * columns, columns,
                                    sums.get(), columns, rows, columns, wide / PER_WORD, true);
            }
            for (int64_t row = 0; row < real; row++) {
                auto* target = const_cast<Value*>(out.at<Type>(image, head, begin + row));
                for (int64_t i = 0; i < width; i += LANES) {
                    const __m512 sum = _mm512_loadu_ps(sums.get() + row * columns + i);
                    const __m512 mean = _mm512_div_ps(sum, _mm512_set1_ps(total[row]));
                    Type::store(target + i, first(std::min(width - i, LANES)), mean);
                }
            }
        }
    }
}

}  // namespace

extern "C" {

// The smallest and the largest of `count` numbers and 0; both NaN where one of them is.
void optsd_range(const void* x, int is_bfloat16, int64_t count, int threads, float* range) {
    if (is_bfloat16)
        find_range<BFloat16>(static_cast<const uint16_t*>(x), count, threads, range);
    else
        find_range<Float32>(static_cast<const float*>(x), count, threads, range);
}

// The low byte of x · factor + shift, where shift's last binary digit is worth 1.
void optsd_quantize(const void* x, int is_bfloat16, int64_t count, float factor, float shift, int threads,
                    uint8_t* out) {
    if (is_bfloat16)
        quantize<BFloat16>(static_cast<const uint16_t*>(x), count, factor, shift, threads, out);
    else
        quantize<Float32>(static_cast<const float*>(x), count, factor, shift, threads, out);
}

// A quantized layer: batch × height × width × channels of numbers, quantized into `bytes`, to batch × out_height ×
// out_width × outputs of the same type. Where `x` is null, `bytes` are taken as they are, by `scale` and `zero_point`,
// and the result is float32. `sizes`: batch, height, width, channels, outputs; the window's rows, columns, stride,
// dilation (each y, x), top, left, out_height, out_width; inputs / 2 and group size of INT4. `multipliers`: null for
// INT8. Channels are a multiple of 4, INT8 weights are padded to 16 outputs. Returns 0, with `range` as optsd_range
// gives it, where x has no finite range.
int optsd_layer(const void* x, int is_bfloat16, uint8_t* bytes, float scale, int zero_point, const int8_t* weights,
                const int8_t* multipliers, const float* weight_scale, const int32_t* column_sums, const float* bias,
                const int64_t* sizes, int threads, float* range, void* out) {
    const Picture picture{bytes, sizes[0], sizes[1], sizes[2], sizes[3]};
    if (x) {
        // as optsd.quantization.schemes.quantize_activation does it
        const int64_t count = picture.batch * picture.height * picture.width * picture.channels;
        optsd_range(x, is_bfloat16, count, threads, range);
        const double step = (double(range[1]) - range[0]) / 254;
        if (!(step < INFINITE)) return 0;
        const double by = std::max(step, 1e-30), zero = std::ceil(-range[0] / by);
        optsd_quantize(x, is_bfloat16, count, float(1 / by), float(1.5 * (1 << 23) + zero), threads, bytes);
        scale = float(by), zero_point = int(zero);
    }
    const Window window{sizes[5],  sizes[6],  sizes[7],  sizes[8],  sizes[9],
                        sizes[10], sizes[11], sizes[12], sizes[13], sizes[14]};
    const Int8Weights int8{weights, window.rows * window.columns * picture.channels};
    const Int4Weights int4{weights, multipliers, sizes[4], sizes[15], sizes[16]};
    const Scales scales{scale, zero_point, weight_scale, column_sums, bias};
    const auto run = [&](auto type, const auto& right) {
        using Type = decltype(type);
        convolve<Type>(picture, window, right, sizes[4], scales, threads, static_cast<typename Type::Value*>(out));
    };
    const bool to_bfloat16 = x && is_bfloat16;
    if (multipliers)
        to_bfloat16 ? run(BFloat16(), int4) : run(Float32(), int4);
    else
        to_bfloat16 ? run(BFloat16(), int8) : run(Float32(), int8);
    return 1;
}

// rows × 2·width to rows × width, bfloat16: the first half of each row times GELU of the second.
void optsd_geglu(const uint16_t* x, int64_t rows, int64_t width, int threads, uint16_t* out) {
#pragma omp parallel for num_threads(threads_for(rows * width, threads))
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < width; i += LANES) {
            const __mmask16 lanes = first(std::min(width - i, LANES));
            const uint16_t* from = x + row * 2 * width + i;
            const __m512 gate = gelu(BFloat16::load(lanes, from + width));
            const __m512 product = _mm512_mul_ps(BFloat16::load(lanes, from), gate);
            BFloat16::store(out + row * width + i, lanes, product);
        }
}

// SiLU of the group normalization of batch × pixels × channels bfloat16 numbers.
void optsd_group_norm_silu(const uint16_t* x, int64_t batch, int64_t pixels, int64_t channels, int64_t groups,
                           const uint16_t* weight, const uint16_t* bias, float eps, int threads, uint16_t* out) {
    const int64_t size = channels / groups, shares = std::min<int64_t>(groups, (threads + batch - 1) / batch);
    const int64_t share = (groups + shares - 1) / shares * size;
#pragma omp parallel for num_threads(threads_for(batch * pixels * channels, threads))
    for (int64_t item = 0; item < batch * shares; item++) {
        const int64_t image = item / shares * pixels * channels, from = std::min(channels, item % shares * share);
        normalize_groups<BFloat16>(x + image, pixels, channels, from, std::min(channels, from + share), size, weight,
                                   bias, eps, out + image);
    }
}

// softmax(scale · Q Kᵀ) V of float32 or bfloat16, with float32 sums. Strides are those of batch, head and token, in
// numbers; a token's `width` numbers lie side by side.
void optsd_attention(const void* query, const int64_t* query_strides, const void* key, const int64_t* key_strides,
                     const void* value, const int64_t* value_strides, void* out, const int64_t* out_strides,
                     int is_bfloat16, int64_t batch, int64_t heads, int64_t queries, int64_t keys, int64_t width,
                     float scale, int threads) {
    const auto run = is_bfloat16 ? attend<BFloat16> : attend<Float32>;
    run({query, query_strides}, {key, key_strides}, {value, value_strides}, {out, out_strides}, batch, heads, queries,
        keys, width, scale, threads);
}
}
