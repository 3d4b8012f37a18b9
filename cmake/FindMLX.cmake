# MLX's headers and library: target mlx, MLX_ROOT and MLX_VERSION. It is the one in MLX_ROOT if that is
# set, else that of CMAKE_PREFIX_PATH, else the one that the Python interpreter imports.
if(MLX_ROOT)
  set(MLX_INCLUDE ${MLX_ROOT}/include)
else()
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c "import mlx; print(list(mlx.__path__)[0])"
    OUTPUT_VARIABLE mlx_of_python
    OUTPUT_STRIP_TRAILING_WHITESPACE
    ERROR_QUIET)
  find_path(MLX_INCLUDE mlx/version.h NO_CACHE HINTS ${mlx_of_python}/include)
endif()
if(NOT EXISTS ${MLX_INCLUDE}/mlx/version.h)
  message(FATAL_ERROR "MLX is not in MLX_ROOT, nor in CMAKE_PREFIX_PATH, nor installed for "
                      "${Python_EXECUTABLE}")
endif()
get_filename_component(MLX_INCLUDE "${MLX_INCLUDE}" ABSOLUTE)
cmake_path(GET MLX_INCLUDE PARENT_PATH MLX_ROOT)
find_library(MLX_LIBRARY mlx NO_CACHE PATHS ${MLX_ROOT}/lib NO_DEFAULT_PATH REQUIRED)

file(STRINGS ${MLX_INCLUDE}/mlx/version.h numbers REGEX "define MLX_VERSION_(MAJOR|MINOR|PATCH)")
list(TRANSFORM numbers REPLACE ".* " "")
list(JOIN numbers "." MLX_VERSION)

# With an older one a step could overwrite what others hold.
file(STRINGS packaging/mlx_releases oldest_mlx LIMIT_COUNT 1)
if(MLX_VERSION VERSION_LESS oldest_mlx)
  message(FATAL_ERROR "mlx_opt needs MLX ${oldest_mlx} or later; in ${MLX_ROOT} is ${MLX_VERSION}")
endif()

add_library(mlx SHARED IMPORTED)
set_target_properties(
  mlx PROPERTIES IMPORTED_LOCATION ${MLX_LIBRARY} INTERFACE_INCLUDE_DIRECTORIES ${MLX_INCLUDE})
