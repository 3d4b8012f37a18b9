#include "mlx_opt/api/clipped.h"

#include "mlx/ops.h"
#include "mlx_opt/graph/clip_scale.h"
#include "mlx_opt/graph/norm.h"

namespace mlx_opt {

Clipped clipped(
    const Clip& clip,
    const Arrays& gradients,
    const std::optional<mx::array>& divisor,
    mx::StreamOrDevice s) {
  check(clip);
  Clipped clipped;
  if (clip.max_value) {
    const mx::array greatest(static_cast<float>(*clip.max_value));
    clipped.scale = GradientScale{mx::array(1.0f), false, greatest};
  }
  if (clip.max_norm || clip.skip_nonfinite) {
    const mx::array norm = global_norm(gradients, s);
    clipped.norm = divisor ? mx::divide(norm, *divisor, s) : norm;
    clipped.scale = gradient_scale(*clipped.norm, clip, s);
    begin_scale(clipped.scale->value);
    if (clip.skip_nonfinite) {
      clipped.finite = mx::isfinite(*clipped.norm, s);
    }
  }
  if (divisor) {
    clipped.scale = clipped.scale ? clipped.scale : GradientScale{mx::array(1.0f)};
    clipped.scale->value = mx::divide(clipped.scale->value, *divisor, s);
  }
  return clipped;
}

} // namespace mlx_opt
