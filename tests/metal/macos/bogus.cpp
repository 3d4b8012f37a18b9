// Refers to a symbol that no libmlx has: the link must fail.
namespace mlx::core {
void no_such_function();
}
void bogus() {
  mlx::core::no_such_function();
}
