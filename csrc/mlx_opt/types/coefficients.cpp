#include "mlx_opt/types/coefficients.h"

#include <cmath>

namespace mlx_opt {

const Coefficients& quintic() {
  static const Coefficients quintic = {{3.4445, -4.7750, 2.0315}};
  return quintic;
}

const Coefficients& polar_express() {
  static const Coefficients polar_express = [] {
    Coefficients coefficients = {
        {8.28721201814563, -23.595886519098837, 17.300387312530933},
        {4.107059111542203, -2.9478499167379106, 0.5448431082926601},
        {3.9486908534822946, -2.908902115962949, 0.5518191394370137},
        {3.3184196573706015, -2.488488024314874, 0.51004894012372},
        {2.300652019954817, -1.6689039845747493, 0.4188073119525673},
        {1.891301407787398, -1.2679958271945868, 0.37680408948524835},
        {1.8750014808534479, -1.2500016453999487, 0.3750001645474248}};
    // A safety margin, so that rounding does not carry a singular value out of the valid range.
    for (auto& [a, b, c] : coefficients) {
      a /= 1.01;
      b /= std::pow(1.01, 3);
      c /= std::pow(1.01, 5);
    }
    coefficients.push_back({1.875, -1.25, 0.375});
    return coefficients;
  }();
  return polar_express;
}

} // namespace mlx_opt
