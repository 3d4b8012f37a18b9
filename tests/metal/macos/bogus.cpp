// Names what no libmlx has: the link has to fail.
namespace mlx::core {
void no_such_function();
}
void bogus() {
  mlx::core::no_such_function();
}
