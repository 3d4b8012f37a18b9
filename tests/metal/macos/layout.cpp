// The classes of MLX whose layout its headers give away, as the code of libmlx.dylib of this
// version has them: offsets read from its disassembly. Compiled only.
#define private public
#define protected public
#include <Metal/Metal.hpp>

#include "mlx/array.h"
#include "mlx/backend/metal/device.h"

using Encoder = mlx::core::metal::CommandEncoder;
using Description = mlx::core::array::ArrayDesc;

#define AT(type, member, offset) static_assert(offsetof(type, member) == offset)
AT(Encoder, buffer_sizes_, 0x28);
AT(Encoder, error_, 0x70);
AT(Encoder, encoder_, 0x80);
AT(Encoder, fence_, 0x88);
AT(Encoder, needs_barrier_, 0x90);
AT(Encoder, concurrent_, 0x91);
AT(Encoder, prev_inputs_, 0xb0);
AT(Encoder, prev_outputs_, 0xd8);
AT(Encoder, next_inputs_, 0x100);
AT(Encoder, next_outputs_, 0x128);
AT(Encoder, concurrent_outputs_, 0x150);
AT(Encoder, all_inputs_, 0x178);
AT(Encoder, all_outputs_, 0x1a0);
AT(Description, data, 0x110);
AT(Description, offset, 0x120);
AT(Description, data_size, 0x128);
