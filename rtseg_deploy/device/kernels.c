/* Labels from a network's logits, and a network's input from a picture, on a processor: kernels.h for all pixels of a frame.

Loaded by kernels.py. Threads live for one call: a pool that waits for work would take time from the network's own. Each takes the next few rows when
it is done with its last, so that it does not matter how the work is spread, or whether it gets a processor at all. */
#include "kernels.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { DONE, NOT_FINITE, NO_MEMORY };
enum { LANES = 8, SHARES = 8, THREADS = 64 };   /* pixels computed together; how often each thread comes for more; threads at most */

/* Before a loop over LANES: gcc makes vectors of loops alone, and would unroll it first. */
#if defined(__GNUC__) && !defined(__clang__)
#define ROLLED _Pragma("GCC unroll 1")
#else
#define ROLLED
#endif

typedef struct {
    const float *logits;                /* classes x height x width */
    int classes, height, width, goal_height, goal_width, mode;
    void *labels;                       /* goal_height x goal_width, of `bytes` each: 1 or 4 */
    size_t bytes;
    int *begins, *row_begins;           /* the columns (rows) from begins[i] on have i as their lower neighbour; as many as there are, and one */
    float *first, *second;              /* weights of each column, LANES more than there are */
    Source *rows;                       /* neighbours and weights of each row */
    int next, share, status;            /* the row that is taken next, and how many at once */
} Labels;

/* What is known of a row of logits, of each of its pixels, and of one more that is the last again. */
typedef struct {
    int row;
    int32_t *top, *magnitude;           /* the greatest class, the lowest of equals; the greatest magnitude, as a float's bits */
    float *best, *lower;                /* its logit, and the greatest of the classes below it */
    float *lines;                       /* the logits, class by class: in the planes they lie so far apart that few fit into a cache at once */
} Survey;

/* What a thread needs for itself. */
typedef struct {
    Survey surveys[2], *above, *below;  /* of the last rows, and which of them are used */
    int32_t *cells;                     /* what settle() finds */
    int *classes;                       /* what candidates() finds */
    float *blends;                      /* of each of those 2 LANES */
} Scratch;

/* Threads take rows from 0 to `rows`, `share` at a time: each gets the first of them, or `rows` where none is left. */
static int taken(int *next, int share, int rows)
{
    int begin = __atomic_fetch_add(next, share, __ATOMIC_RELAXED);
    return begin < rows ? begin : rows;
}

static int share_of(int rows, int threads)
{
    int share = rows / (threads * SHARES);
    return share > 1 ? share : 1;
}

static void in_threads(void *(*work)(void *), void *job, int threads)
{
    pthread_t helpers[THREADS];
    int started = 0;
    while (started < threads - 1 && started < THREADS && !pthread_create(&helpers[started], NULL, work, job))
        started++;
    work(job);
    while (started)
        pthread_join(helpers[--started], NULL);
}

static inline float max(float one, float other)
{
    return one > other ? one : other;
}

static void survey(const Labels *job, int row, Survey *found)
{
    const int width = job->width;
    int32_t *restrict top = found->top, *restrict magnitude = found->magnitude;
    float *restrict best = found->best, *restrict lower = found->lower;
    for (int class = 0; class < job->classes; class++) {
        const float *restrict line = job->logits + ((size_t)class * job->height + row) * width;
        if (job->mode != NEAREST) {
            float *copy = found->lines + (size_t)class * (width + 1);
            memcpy(copy, line, sizeof(float) * width);
            copy[width] = line[width - 1];
        }
        if (!class) {
            for (int i = 0; i < width; i++) {
                best[i] = line[i];
                lower[i] = -INFINITY;
                top[i] = magnitude[i] = 0;
            }
        }
        for (int i = 0; i < width; i++) {
            union { float value; int32_t bits; } logit = {line[i]};
            int32_t size = logit.bits & 0x7fffffff;         /* as an integer: the greater float's is the greater, and infinity's and NaN's are greatest */
            int more = logit.value > best[i];
            magnitude[i] = size > magnitude[i] ? size : magnitude[i];
            lower[i] = more ? best[i] : lower[i];           /* what was best until now is of a lower class */
            top[i] = more ? class : top[i];
            best[i] = more ? logit.value : best[i];
        }
    }
    top[width] = top[width - 1];
    magnitude[width] = magnitude[width - 1];
    best[width] = best[width - 1];
    lower[width] = lower[width - 1];
    found->row = row;
}

/* The label of each cell between two rows; -1 where its pixels' labels may differ. A cell has two neighbouring columns, the last one itself twice. */
static void settle(const Survey *above, const Survey *below, int width, int32_t *cells)
{
    const int32_t *restrict a = above->top, *restrict b = below->top, *restrict m = above->magnitude, *restrict n = below->magnitude;
    const float *restrict p = above->best, *restrict q = above->lower, *restrict r = below->best, *restrict s = below->lower;
    for (int i = 0; i < width; i++) {
        int32_t left = m[i] > n[i] ? m[i] : n[i], right = m[i + 1] > n[i + 1] ? m[i + 1] : n[i + 1];
        union { int32_t bits; float value; } magnitude = {left > right ? left : right};
        float slack = slack_of(magnitude.value);
        int one = (a[i] == b[i]) & (a[i] == a[i + 1]) & (a[i] == b[i + 1]);
        int clear = (p[i] - q[i] > slack) & (p[i + 1] - q[i + 1] > slack) & (r[i] - s[i] > slack) & (r[i + 1] - s[i + 1] > slack);
        cells[i] = one & clear ? a[i] : -1;
    }
}

/* The classes that may win in a cell, in order: those that no class that is greatest at a corner exceeds at every corner (see slack_of). */
static int candidates(const Labels *job, const Scratch *own, int cell)
{
    const size_t line = job->width + 1;
    const float *above = own->above->lines + cell, *below = own->below->lines + cell;
    const int tops[4] = {own->above->top[cell], own->above->top[cell + 1], own->below->top[cell], own->below->top[cell + 1]};
    const int32_t *up = own->above->magnitude + cell, *down = own->below->magnitude + cell;
    const int32_t left = up[0] > down[0] ? up[0] : down[0], right = up[1] > down[1] ? up[1] : down[1];
    const union { int32_t bits; float value; } magnitude = {left > right ? left : right};
    const float slack = slack_of(magnitude.value);
    int leaders[4], count = 0, winners = 0;
    float limits[4][4], least = -INFINITY;
    for (int corner = 0; corner < 4; corner++) {
        int known = 0;
        for (int other = 0; other < count; other++)
            known |= leaders[other] == tops[corner];
        leaders[count] = tops[corner];
        count += !known;
    }
    for (int leader = 0; leader < count; leader++) {
        const size_t at = line * leaders[leader];
        limits[leader][0] = above[at];
        limits[leader][1] = above[at + 1];
        limits[leader][2] = below[at];
        limits[leader][3] = below[at + 1];
        least = max(least, -max(max(-above[at], -above[at + 1]), max(-below[at], -below[at + 1])));
    }
    least -= slack;
    for (int class = 0; class < job->classes; class++, above += line, below += line) {
        int beaten = max(max(above[0], above[1]), max(below[0], below[1])) < least;     /* most are, by all that a leader has */
        for (int leader = 0; leader < count && !beaten; leader++) {
            const float *limit = limits[leader], less = class < leaders[leader] ? slack : 0;
            int exceeded = (limit[0] >= above[0] + less) & (limit[1] >= above[1] + less) & (limit[2] >= below[0] + less) & (limit[3] >= below[1] + less);
            beaten |= exceeded & (class != leaders[leader]);
        }
        own->classes[winners] = class;
        winners += !beaten;
    }
    return winners;
}

/* Write `count` labels, LANES at most, of pixels from `at` on. */
static void put(const Labels *job, size_t at, const int32_t *labels, int count)
{
    uint8_t bytes[LANES];
    if (job->bytes == sizeof *labels) {
        memcpy((int32_t *)job->labels + at, labels, count * sizeof *labels);
        return;
    }
    for (int i = 0; i < LANES; i++)
        bytes[i] = (uint8_t)labels[i];
    if (count == LANES)
        memcpy((uint8_t *)job->labels + at, bytes, LANES);
    else
        memcpy((uint8_t *)job->labels + at, bytes, count);
}

/* Write one label over `count` pixels. */
static void fill(const Labels *job, size_t at, int32_t label, int count)
{
    if (job->bytes == 1)
        memset((uint8_t *)job->labels + at, label, count);
    else
        for (int i = 0; i < count; i++)
            ((int32_t *)job->labels)[at + i] = label;
}

/* The pixels of a row of the image in a cell, LANES at most: of each class both rows' blends, which are blended. */
static void compare(const float *restrict blends, const int *classes, int count, Source row, int32_t *restrict labels)
{
    float best[LANES];
    ROLLED
    for (int i = 0; i < LANES; i++) {
        best[i] = blended(blends[i], blends[LANES + i], row.first, row.second);
        labels[i] = classes[0];
    }
    for (int k = 1; k < count; k++) {
        const float *restrict blend = blends + 2 * LANES * k;
        const int32_t class = classes[k];
        ROLLED
        for (int i = 0; i < LANES; i++) {
            float value = blended(blend[i], blend[LANES + i], row.first, row.second);
            int more = value > best[i];
            labels[i] = more ? class : labels[i];
            best[i] = more ? value : best[i];
        }
    }
}

/* Each pixel of a cell by itself, of the classes that may win there. */
static void interpolate(const Labels *job, const Scratch *own, int cell, int count)
{
    const int above = own->above->row;
    int32_t labels[LANES];
    for (int column = job->begins[cell]; column < job->begins[cell + 1]; column += LANES) {
        const int left = job->begins[cell + 1] - column;
        const float *restrict first = job->first + column, *restrict second = job->second + column;
        for (int k = 0; k < count; k++) {
            const size_t at = (size_t)own->classes[k] * (job->width + 1) + cell;
            const float *upper = own->above->lines + at, *lower = own->below->lines + at;
            const float a = upper[0], b = upper[1], c = lower[0], d = lower[1];
            float *restrict blends = own->blends + 2 * LANES * k;
            ROLLED
            for (int i = 0; i < LANES; i++) {
                blends[i] = blended(a, b, first[i], second[i]);
                blends[LANES + i] = blended(c, d, first[i], second[i]);
            }
        }
        for (int row = job->row_begins[above]; row < job->row_begins[above + 1]; row++) {
            compare(own->blends, own->classes, count, job->rows[row], labels);
            put(job, (size_t)row * job->goal_width + column, labels, left < LANES ? left : LANES);
        }
    }
}

/* Copy a row of labels to those after it, up to `end`. */
static void repeat(const Labels *job, int row, int end)
{
    const size_t size = job->bytes * job->goal_width;
    char *labels = job->labels;
    for (int other = row + 1; other < end; other++)
        memcpy(labels + size * other, labels + size * row, size);
}

/* The rows of the image between two rows of logits: what is settled is filled in, and the rest compared. */
static void between(const Labels *job, Scratch *own)
{
    const int begin = job->row_begins[own->above->row], end = job->row_begins[own->above->row + 1];
    settle(own->above, own->below, job->width, own->cells);
    for (int cell = 0, next; cell < job->width; cell = next) {
        for (next = cell + 1; next < job->width && own->cells[next] == own->cells[cell];)
            next++;
        if (own->cells[cell] >= 0)
            fill(job, (size_t)begin * job->goal_width + job->begins[cell], own->cells[cell], job->begins[next] - job->begins[cell]);
    }
    repeat(job, begin, end);
    for (int cell = 0; cell < job->width; cell++)
        if (own->cells[cell] < 0 && job->begins[cell] < job->begins[cell + 1])
            interpolate(job, own, cell, candidates(job, own, cell));
}

/* The row of the image that has the labels of a row of logits, each pixel one of them. */
static void pick(const Labels *job, const Survey *row)
{
    const int begin = job->row_begins[row->row];
    const size_t at = (size_t)begin * job->goal_width;
    if (job->goal_width == job->width && job->bytes == 1)
        for (int i = 0; i < job->width; i++)
            ((uint8_t *)job->labels)[at + i] = (uint8_t)row->top[i];
    else
        for (int cell = 0; cell < job->width; cell++)
            fill(job, at + job->begins[cell], row->top[cell], job->begins[cell + 1] - job->begins[cell]);
    repeat(job, begin, job->row_begins[row->row + 1]);
}

/* The next so many bytes of a block of memory, from a cache line's begin. */
static void *carved(char **rest, size_t bytes)
{
    void *piece = *rest;
    *rest += (bytes + 63) / 64 * 64;
    return piece;
}

/* A thread's scratch; NULL, or the block that it is in. */
static void *scratch(const Labels *job, Scratch *own)
{
    const size_t line = sizeof(float) * (job->width + 1), list = sizeof(float) * job->classes, lines = line * job->classes;
    char *block = malloc(9 * (line + 64) + 2 * (lines + 64) + list + 64 + 2 * LANES * list), *rest = block;
    if (!block)
        return NULL;
    for (int i = 0; i < 2; i++) {
        Survey *survey = own->surveys + i;
        survey->row = -1;
        survey->top = carved(&rest, line);
        survey->magnitude = carved(&rest, line);
        survey->best = carved(&rest, line);
        survey->lower = carved(&rest, line);
        survey->lines = carved(&rest, lines);
    }
    own->cells = carved(&rest, line);
    own->classes = carved(&rest, list);
    own->blends = (float *)rest;
    return block;
}

/* The survey of a row of logits, made anew where it is not that of the last row. */
static Survey *surveyed(Labels *job, Scratch *own, int row)
{
    Survey *found = own->surveys + row % 2;
    int32_t greatest = 0;
    if (found->row != row) {
        survey(job, row, found);
        for (int i = 0; i < job->width; i++)
            greatest = found->magnitude[i] > greatest ? found->magnitude[i] : greatest;
        if (greatest >= 0x7f800000)
            __atomic_store_n(&job->status, NOT_FINITE, __ATOMIC_RELAXED);
    }
    return found;
}

static void label_row(Labels *job, Scratch *own, int row)
{
    if (job->row_begins[row] == job->row_begins[row + 1])
        return;                         /* of a reduction: no pixel lies there */
    own->above = surveyed(job, own, row);
    if (job->mode == NEAREST) {
        pick(job, own->above);
    } else {
        own->below = surveyed(job, own, row + 1 < job->height ? row + 1 : row);
        between(job, own);
    }
}

static void *label_rows(void *given)
{
    Labels *job = given;
    Scratch own;
    void *block = scratch(job, &own);
    if (!block)
        __atomic_store_n(&job->status, NO_MEMORY, __ATOMIC_RELAXED);
    for (int row = 0; block && !__atomic_load_n(&job->status, __ATOMIC_RELAXED) && (row = taken(&job->next, job->share, job->height)) < job->height;)
        for (int end = row + job->share; row < end && row < job->height; row++)
            label_row(job, &own, row);
    free(block);
    return NULL;
}

/* Which of `goal` begin at each of `have`: begins[i] is the first whose lower neighbour is i or a later one. */
static void begins_of(int *begins, int have, int goal, int mode)
{
    for (int i = 0, at = 0; i <= have; i++) {
        while (at < goal && source_of(at, have, goal, mode).low < i)
            at++;
        begins[i] = at;
    }
}

/* classes x height x width logits -> goal_height x goal_width labels of 1 or 4 bytes. Returns DONE, NOT_FINITE (of what was read), or NO_MEMORY. */
int labels(const float *logits, int classes, int height, int width, void *labels, int bytes, int goal_height, int goal_width, int mode, int threads)
{
    Labels job = {logits, classes, height, width, goal_height, goal_width, mode, labels, bytes, NULL, NULL, NULL, NULL, NULL, 0, 1, DONE};
    const size_t line = sizeof(float) * (goal_width + LANES);
    char *block = malloc(sizeof(int) * ((size_t)height + width + 2) + 2 * line + sizeof(Source) * goal_height + 5 * 64), *rest = block;
    if (!block)
        return NO_MEMORY;
    if (height == goal_height && width == goal_width)
        job.mode = NEAREST;             /* each pixel is one of the logits' */
    job.begins = carved(&rest, sizeof(int) * (width + 1));
    job.row_begins = carved(&rest, sizeof(int) * (height + 1));
    job.first = carved(&rest, line);
    job.second = carved(&rest, line);
    job.rows = carved(&rest, sizeof(Source) * goal_height);
    begins_of(job.begins, width, goal_width, job.mode);
    begins_of(job.row_begins, height, goal_height, job.mode);
    for (int i = 0; i < goal_width + LANES; i++) {
        Source column = source_of(i < goal_width ? i : goal_width - 1, width, goal_width, mode);
        job.first[i] = column.first;
        job.second[i] = column.second;
    }
    for (int i = 0; i < goal_height; i++)
        job.rows[i] = source_of(i, height, goal_height, mode);
    job.share = share_of(height, threads);
    in_threads(label_rows, &job, threads);
    free(block);
    return job.status;
}

typedef struct {
    const uint8_t *pixels;              /* have_height x have_width x 3 */
    int have_height, have_width, height, width;
    void *values;                       /* 3 x height x width, of `bytes` each: 4 or 2 */
    size_t bytes;
    const float *offsets, *factors;     /* of each channel: see normalised() */
    Source *columns;                    /* neighbours and weight of each column */
    int next, share, status;
} Input;

/* The nearest number of 16 bits, halves to even, as its bits; what is too great is infinite. */
static inline uint16_t half_of(float value)
{
    union { float value; uint32_t bits; } number = {value}, small;
    const uint32_t sign = number.bits >> 16 & 0x8000u, size = number.bits & 0x7fffffffu;
    const uint32_t normal = (size + 0xfffu + (size >> 13 & 1u) - (112u << 23)) >> 13;
    small.bits = size;
    small.value += 0.5f;                /* whose last place is that of the smallest numbers of 16 bits */
    return (uint16_t)(sign | (size < 113u << 23 ? small.bits - 0x3f000000u : size >= 0x477ff000u ? 0x7c00u : normal));
}

/* A row of the resized picture. `values` has room for one of the picture that is given. */
static void resize(const Input *job, int row, double *values, uint8_t *line)
{
    const Source at = pixel_source_of(row, job->have_height, job->height);
    const size_t size = 3 * (size_t)job->have_width;
    const uint8_t *above = job->pixels + size * at.low, *below = job->pixels + size * at.high;
    for (size_t i = 0; i < size; i++)
        values[i] = part_of_way(above[i], below[i], at.second);
    for (int i = 0; i < job->width; i++)
        for (int channel = 0; channel < 3; channel++) {
            const Source column = job->columns[i];
            line[3 * i + channel] = (uint8_t)whole(part_of_way(values[3 * column.low + channel], values[3 * column.high + channel], column.second));
        }
}

/* Three rows of the network's input from one of pixels. */
static void normalise(const Input *job, int row, const uint8_t *line)
{
    const size_t plane = (size_t)job->height * job->width, begin = (size_t)row * job->width;
    const float offsets[3] = {job->offsets[0], job->offsets[1], job->offsets[2]}, factors[3] = {job->factors[0], job->factors[1], job->factors[2]};
    if (job->bytes == sizeof(float)) {
        float *restrict red = (float *)job->values + begin, *restrict green = red + plane, *restrict blue = green + plane;
        for (int i = 0; i < job->width; i++) {
            red[i] = normalised(line[3 * i], offsets[0], factors[0]);
            green[i] = normalised(line[3 * i + 1], offsets[1], factors[1]);
            blue[i] = normalised(line[3 * i + 2], offsets[2], factors[2]);
        }
    } else {
        uint16_t *restrict red = (uint16_t *)job->values + begin, *restrict green = red + plane, *restrict blue = green + plane;
        for (int i = 0; i < job->width; i++) {
            red[i] = half_of(normalised(line[3 * i], offsets[0], factors[0]));
            green[i] = half_of(normalised(line[3 * i + 1], offsets[1], factors[1]));
            blue[i] = half_of(normalised(line[3 * i + 2], offsets[2], factors[2]));
        }
    }
}

static void *input_rows(void *given)
{
    Input *job = given;
    const int same = job->height == job->have_height && job->width == job->have_width;
    double *values = same ? NULL : malloc(3 * sizeof(double) * job->have_width + 3 * (size_t)job->width);
    uint8_t *line = (uint8_t *)(values + 3 * (same ? 0 : job->have_width));
    if (!same && !values)
        __atomic_store_n(&job->status, NO_MEMORY, __ATOMIC_RELAXED);
    for (int row = 0; (same || values) && (row = taken(&job->next, job->share, job->height)) < job->height;)
        for (int end = row + job->share; row < end && row < job->height; row++) {
            if (!same)
                resize(job, row, values, line);
            normalise(job, row, same ? job->pixels + 3 * (size_t)row * job->width : line);
        }
    free(values);
    return NULL;
}

/* A picture -> 3 x height x width values of 4 or 2 bytes. Returns DONE or NO_MEMORY. */
int network_input(const uint8_t *pixels, int have_height, int have_width, void *values, int bytes, int height, int width, const float *offsets,
                  const float *factors, int threads)
{
    Input job = {pixels, have_height, have_width, height, width, values, bytes, offsets, factors, malloc(sizeof(Source) * width), 0, 1, DONE};
    if (!job.columns)
        return NO_MEMORY;
    for (int i = 0; i < width; i++)
        job.columns[i] = pixel_source_of(i, have_width, width);
    job.share = share_of(height, threads);
    in_threads(input_rows, &job, threads);
    free(job.columns);
    return job.status;
}
