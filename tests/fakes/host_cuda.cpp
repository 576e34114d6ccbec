// kernels.cu for a processor: the words that CUDA adds to C++, and a loop over the grid in place of a GPU.
#include <cmath>
#include <cstring>
#include <utility>

#define __global__
#define __device__
#define __forceinline__ inline
struct Place { unsigned x, y, z; };
static thread_local Place blockIdx, threadIdx, blockDim, gridDim;

#include "kernels.cu"

template <class T> constexpr char kind(const T **) { return 'r'; }      // what a kernel does with a parameter: reads, writes, takes an int or a float
template <class T> constexpr char kind(T **) { return 'w'; }
constexpr char kind(int *) { return 'i'; }
constexpr char kind(float *) { return 'f'; }

template <class... P> const char *signature_of(void (*)(P...))
{
    static const char text[] = {kind((P *)nullptr)..., 0};
    return text;
}

template <class... P, std::size_t... N> void call(void (*kernel)(P...), void **given, std::index_sequence<N...>)
{
    kernel(*(P *)given[N]...);
}

template <class... P> void loop(void (*kernel)(P...), Place grid, Place block, void **given)
{
    gridDim = grid, blockDim = block;
    for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
        for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++)
            for (threadIdx.y = 0; threadIdx.y < block.y; threadIdx.y++)
                for (threadIdx.x = 0; threadIdx.x < block.x; threadIdx.x++)
                    call(kernel, given, std::index_sequence_for<P...>());
}

#define EACH(do_it) do_it(labels_f32) do_it(labels_f16) do_it(pixels_f32) do_it(pixels_f16)

extern "C" const char *signature(const char *name)
{
#define TELL(kernel) if (!std::strcmp(name, #kernel)) return signature_of(kernel);
    EACH(TELL)
    return nullptr;
}

extern "C" void launch(const char *name, unsigned gx, unsigned gy, unsigned bx, unsigned by, void **given)
{
#define RUN(kernel) if (!std::strcmp(name, #kernel)) loop(kernel, {gx, gy, 1}, {bx, by, 1}, given);
    EACH(RUN)
}

// what the kernels are held to: the definition in kernels.h, pixel by pixel, with no shortcut
extern "C" void defined(const float *logits, int *found, int classes, int height, int width, int goal_height, int goal_width, int mode)
{
    for (int y = 0; y < goal_height; y++)
        for (int x = 0; x < goal_width; x++) {
            Source row = source_of(y, height, goal_height, mode), column = source_of(x, width, goal_width, mode);
            *found++ = label_at(logits, classes, height, width, row, column);
        }
}
