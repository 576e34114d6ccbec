/* What one output pixel is, for a processor and for CUDA: the label of a pixel of the image, and the network's input at one.

C99, as gcc, clang, nvcc and NVRTC take it; nothing of it may be contracted by the compiler (-ffp-contract=off, --fmad=false): where PyTorch's build
multiplies and adds in one rounding FMA stands. LOGIT is the type of a logit in memory, AS_FLOAT makes a float of one. Sizes are (height, width). */
#ifndef RTSEG_KERNELS_H
#define RTSEG_KERNELS_H

#ifdef __CUDACC__
#define BODY static __device__ __forceinline__
#else
#include <math.h>
#define BODY static inline
#endif
#ifndef LOGIT
#define LOGIT float
#define AS_FLOAT(value) (value)
#endif
/* PyTorch takes the same way: its code for processors with FMA is contracted, that for those without is not. */
#if defined(__CUDACC__) || defined(__FMA__) || defined(__ARM_FEATURE_FMA) || defined(__aarch64__)
#define FMA(a, b, c) fmaf(a, b, c)
#else
#define FMA(a, b, c) ((a) * (b) + (c))
#endif

enum { CENTRES, CORNERS, NEAREST };     /* F.interpolate: bilinear, bilinear with align_corners, nearest */

typedef struct { int low, high; float first, second; } Source;      /* two neighbours along an axis, and their weights */

/* The one that `nearest` takes, which is the one at or before it, in float as PyTorch has it. */
BODY int nearest_of(int at, int have, int goal)
{
    int low = (int)((float)at * ((float)have / (float)goal));
    return have == goal ? at : low < have - 1 ? low : have - 1;
}

/* Where row or column `at` of `goal` lies among `have`: upsample_bilinear2d's arithmetic for a size that is given, in float. */
BODY Source source_of(int at, int have, int goal, int mode)
{
    Source found = {at, at, 1.0f, 0.0f};
    if (mode == NEAREST) {
        found.low = found.high = nearest_of(at, have, goal);
    } else if (have != goal) {
        float step = mode == CORNERS ? (goal > 1 ? (float)(have - 1) / (float)(goal - 1) : 0.0f) : (float)have / (float)goal;
        float place = mode == CORNERS ? step * (float)at : FMA(step, (float)at + 0.5f, -0.5f);
        place = place < 0.0f ? 0.0f : place;
        found.low = (int)place < have - 1 ? (int)place : have - 1;
        found.high = found.low + (found.low < have - 1);
        found.second = place - (float)found.low;
        found.second = found.second > 1.0f ? 1.0f : found.second;
        found.first = 1.0f - found.second;
    }
    return found;
}

/* One blend along an axis. Rounding is monotone, and so is this in `low` and in `high`. */
BODY float blended(float low, float high, float first, float second)
{
    return FMA(low, first, high * second);
}

/* A class's logit at a pixel: along the columns first. `plane` is height x width. */
BODY float logit_at(const LOGIT *plane, int width, Source row, Source column)
{
    const LOGIT *above = plane + (long)row.low * width, *below = plane + (long)row.high * width;
    return blended(blended(AS_FLOAT(above[column.low]), AS_FLOAT(above[column.high]), column.first, column.second),
                   blended(AS_FLOAT(below[column.low]), AS_FLOAT(below[column.high]), column.first, column.second), row.first, row.second);
}

/* The class of the greatest logit at a pixel, the lowest of equals: the definition, with no shortcut. */
BODY int label_at(const LOGIT *logits, int classes, int height, int width, Source row, Source column)
{
    int label = 0, other;
    float best = logit_at(logits, width, row, column);
    for (other = 1; other < classes; other++) {
        float value = logit_at(logits + (long)other * height * width, width, row, column);
        label = value > best ? other : label;
        best = value > best ? value : best;
    }
    return label;
}

/* By how much a class must exceed a lower one at all four corners of a cell to exceed it at each pixel of it, as computed.

Within a cell, if a >= c at the four corners then a >= c at each pixel, as computed: each rounding keeps the order. So c > a never is the label there,
for the lowest of equals is. For c < a equality must be ruled out. With u = 2^-24 and M the greatest magnitude at the corners a blend is off by at most
2uM (two products and a sum, or one product and a fused one; the weights add up to 1 within u), so two after one another by 4uM; for both classes 8uM;
the exact difference is at least its least value at the corners, less 2u of it. 16uM is more than enough; what underflows loses less than 2^-126 at
each of the six products and sums of a class. */
BODY float slack_of(float magnitude)
{
    return magnitude * 9.5367431640625e-07f + 2.3509887016445750e-37f;      /* 2^-20, 2^-121.7 */
}

/* Row or column `at` of a picture of `have` that is resized to `goal`: between pixel centres, in double (frames have integers, so nearly exact). */
BODY Source pixel_source_of(int at, int have, int goal)
{
    Source found;
    double place = ((double)at + 0.5) * (double)have / (double)goal - 0.5;
    place = place < 0.0 ? 0.0 : place > (double)(have - 1) ? (double)(have - 1) : place;
    found.second = (float)place;                            /* where the definition rounds it */
    found.low = (int)found.second < have - 2 ? (int)found.second : have > 1 ? have - 2 : 0;
    found.high = found.low + 1 < have ? found.low + 1 : have - 1;
    found.second -= (float)found.low;
    found.first = 1.0f - found.second;
    return found;
}

/* One blend of a picture's values, which are from 0 to 255: rows first, then columns. */
BODY double part_of_way(double low, double high, float part)
{
    return low + (high - low) * (double)part;
}

/* Rounded as uint8 is: halves to even, which adding 2^52 does. */
BODY float whole(double value)
{
    return (float)(value + 4503599627370496.0 - 4503599627370496.0);
}

/* A channel of a pixel of a resized picture of height x width x 3. */
BODY float resized_at(const unsigned char *pixels, int width, int channel, Source row, Source column)
{
    const unsigned char *above = pixels + 3 * (long)row.low * width + channel, *below = pixels + 3 * (long)row.high * width + channel;
    return whole(part_of_way(part_of_way(above[3 * column.low], below[3 * column.low], row.second),
                             part_of_way(above[3 * column.high], below[3 * column.high], row.second), column.second));
}

/* The network's input of a value from 0 to 255: offset is 255 mean, factor 1 / (255 std), each rounded once. */
BODY float normalised(float value, float offset, float factor)
{
    return (value - offset) * factor;
}
#endif
