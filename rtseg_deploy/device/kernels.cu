/* The CUDA kernels around kernels.h: a frame into the network's input, and its logits into labels of the frame's size. For CUDA 10.2 and newer, nvcc
or NVRTC, which has no headers; with --fmad=false, so that arithmetic is as it is written. FP16 is an unsigned short with conversions of our own: not
every NVRTC finds cuda_fp16.h, and the same ones are tested on a processor (tests/fakes/host_cuda.cpp). */
#include "kernels.h"

enum { GROUP = 4 };                     /* pixels of a row that a thread labels: at 1/8 they lie in one cell */

struct Half { unsigned short bits; };
union Word { unsigned int bits; float value; };

static __device__ __forceinline__ float float_of(float value)
{
    return value;
}

/* Exactly: 2^112 is the difference of the exponents' biases. */
static __device__ __forceinline__ float float_of(Half half)
{
    Word word;
    word.bits = (unsigned int)(half.bits & 0x7fff) << 13;
    if (word.bits >= 0x0f800000)        /* not finite */
        word.bits |= 0x7f800000;
    else
        word.value *= 5192296858534827628530496329220096.0f;
    word.bits |= (unsigned int)(half.bits & 0x8000) << 16;
    return word.value;
}

static __device__ __forceinline__ void put(float *place, float value)
{
    *place = value;
}

/* To the nearest, halves to even. */
static __device__ __forceinline__ void put(Half *place, float value)
{
    Word word, half = {0x3f000000};     /* 0.5, whose last place is that of FP16's smallest numbers */
    word.value = value;
    unsigned int sign = word.bits & 0x80000000;
    word.bits ^= sign;
    if (word.bits >= 0x47800000)        /* 65536 and more, and NaN */
        word.bits = word.bits > 0x7f800000 ? 0x7e00 : 0x7c00;
    else if (word.bits < 0x38800000) {  /* below 2^-14 */
        word.value += half.value;
        word.bits -= half.bits;
    } else
        word.bits = (word.bits - 0x38000000 + 0x0fff + (word.bits >> 13 & 1)) >> 13;
    place->bits = (unsigned short)(word.bits | sign >> 16);
}

/* A class's logits at the corners of a cell. */
struct Corners { float value[4]; };

template <class T> static __device__ __forceinline__ Corners corners_of(const T *plane, int width, Source row, Source column)
{
    const T *above = plane + (long long)row.low * width, *below = plane + (long long)row.high * width;
    Corners found = {{float_of(above[column.low]), float_of(above[column.high]), float_of(below[column.low]), float_of(below[column.high])}};
    return found;
}

/* The class of every pixel of a cell, or -1 where its corners do not settle that (slack_of in kernels.h has the algebra). Tells whether all is finite. */
template <class T> static __device__ int agreed(const T *logits, int classes, long long plane, int width, Source row, Source column, bool *finite)
{
    float best[4], lower[4], magnitude = 0.0f;      /* lower: the best of the classes below the best one */
    int label[4] = {0, 0, 0, 0};
    for (int other = 0; other < classes; other++) {
        Corners found = corners_of(logits + other * plane, width, row, column);
        for (int n = 0; n < 4; n++) {
            float value = found.value[n];
            if (value - value != 0.0f)
                *finite = false;
            magnitude = value > magnitude ? value : -value > magnitude ? -value : magnitude;
            if (other == 0 || value > best[n]) {
                lower[n] = best[n];
                best[n] = value;
                label[n] = other;
            }
        }
    }
    float slack = slack_of(magnitude);
    for (int n = 0; n < 4; n++)
        if (label[n] != label[0] || (label[n] > 0 && !(best[n] - lower[n] > slack)))
            return -1;
    return label[0];
}

template <class T> static __device__ void labels(const T *logits, unsigned char *found, int *broken, int classes, int height, int width, int goal_height,
                                                 int goal_width, int mode)
{
    int y = blockIdx.y * blockDim.y + threadIdx.y, x = GROUP * (blockIdx.x * blockDim.x + threadIdx.x);
    if (y >= goal_height || x >= goal_width)
        return;
    long long plane = (long long)height * width;
    Source row = source_of(y, height, goal_height, mode), column[GROUP];
    int label[GROUP], mixed = 0;
    bool finite = true;
    for (int n = 0; n < GROUP; n++) {
        column[n] = source_of(x + n < goal_width ? x + n : goal_width - 1, width, goal_width, mode);
        label[n] = n && column[n].low == column[n - 1].low ? label[n - 1] : agreed(logits, classes, plane, width, row, column[n], &finite);
        mixed |= label[n] < 0;
    }
    if (!finite)
        *broken = 1;
    if (mixed) {
        float best[GROUP];
        for (int other = 0; other < classes; other++) {
            Corners at;
            for (int n = 0; n < GROUP; n++) {
                if (!n || column[n].low != column[n - 1].low)
                    at = corners_of(logits + other * plane, width, row, column[n]);
                float value = blended(blended(at.value[0], at.value[1], column[n].first, column[n].second),
                                      blended(at.value[2], at.value[3], column[n].first, column[n].second), row.first, row.second);
                if (other == 0 || value > best[n]) {
                    best[n] = value;
                    label[n] = other;
                }
            }
        }
    }
    long long first = (long long)y * goal_width + x;
    for (int n = 0; n < GROUP && x + n < goal_width; n++)
        if (classes < 256)
            found[first + n] = (unsigned char)label[n];
        else
            ((int *)found)[first + n] = label[n];
}

extern "C" __global__ void labels_f32(const float *logits, unsigned char *found, int *broken, int classes, int height, int width, int goal_height,
                                      int goal_width, int mode)
{
    labels(logits, found, broken, classes, height, width, goal_height, goal_width, mode);
}

extern "C" __global__ void labels_f16(const Half *logits, unsigned char *found, int *broken, int classes, int height, int width, int goal_height,
                                      int goal_width, int mode)
{
    labels(logits, found, broken, classes, height, width, goal_height, goal_width, mode);
}

/* A frame of height x width x 3 bytes into 3 x goal_height x goal_width of the network's type; offset and factor as kernels.h has them, of R, G and B. */
template <class T> static __device__ void pixels(const unsigned char *frame, T *input, int height, int width, int goal_height, int goal_width,
                                                 const float *offset, const float *factor)
{
    int y = blockIdx.y * blockDim.y + threadIdx.y, x = blockIdx.x * blockDim.x + threadIdx.x;
    if (y >= goal_height || x >= goal_width)
        return;
    bool same = height == goal_height && width == goal_width;
    Source row = {0, 0, 1.0f, 0.0f}, column = row;
    if (!same) {
        row = pixel_source_of(y, height, goal_height);
        column = pixel_source_of(x, width, goal_width);
    }
    for (int channel = 0; channel < 3; channel++) {
        float value = same ? (float)frame[3 * ((long long)y * width + x) + channel] : resized_at(frame, width, channel, row, column);
        put(input + ((long long)channel * goal_height + y) * goal_width + x, normalised(value, offset[channel], factor[channel]));
    }
}

extern "C" __global__ void pixels_f32(const unsigned char *frame, float *input, int height, int width, int goal_height, int goal_width,
                                      float r, float g, float b, float r_factor, float g_factor, float b_factor)
{
    const float offset[3] = {r, g, b}, factor[3] = {r_factor, g_factor, b_factor};
    pixels(frame, input, height, width, goal_height, goal_width, offset, factor);
}

extern "C" __global__ void pixels_f16(const unsigned char *frame, Half *input, int height, int width, int goal_height, int goal_width,
                                      float r, float g, float b, float r_factor, float g_factor, float b_factor)
{
    const float offset[3] = {r, g, b}, factor[3] = {r_factor, g_factor, b_factor};
    pixels(frame, input, height, width, goal_height, goal_width, offset, factor);
}
