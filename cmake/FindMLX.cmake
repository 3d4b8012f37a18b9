# The MLX that the Python interpreter imports: target mlx, and MLX_VERSION.
execute_process(
  COMMAND
    ${Python_EXECUTABLE} -c
    "import importlib.metadata as m, mlx; print(list(mlx.__path__)[0], m.version('mlx'), sep=';')"
  OUTPUT_VARIABLE mlx_found
  OUTPUT_STRIP_TRAILING_WHITESPACE
  RESULT_VARIABLE mlx_missing)
if(mlx_missing)
  message(FATAL_ERROR "MLX is not installed for ${Python_EXECUTABLE}")
endif()
list(GET mlx_found 0 MLX_ROOT)
list(GET mlx_found 1 MLX_VERSION)

find_library(MLX_LIBRARY mlx PATHS ${MLX_ROOT}/lib NO_DEFAULT_PATH REQUIRED)
add_library(mlx SHARED IMPORTED)
set_target_properties(
  mlx PROPERTIES IMPORTED_LOCATION ${MLX_LIBRARY} INTERFACE_INCLUDE_DIRECTORIES
                                                  ${MLX_ROOT}/include)
