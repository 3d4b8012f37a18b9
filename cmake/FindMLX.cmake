# MLX's headers and library: target mlx, and MLX_VERSION. Looked for in CMAKE_PREFIX_PATH and then
# in the MLX that the Python interpreter imports; -DMLX_ROOT= names another.
if(NOT MLX_ROOT)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c "import mlx; print(list(mlx.__path__)[0])"
    OUTPUT_VARIABLE mlx_of_python
    OUTPUT_STRIP_TRAILING_WHITESPACE
    ERROR_QUIET)
endif()
find_path(MLX_INCLUDE mlx/version.h NO_CACHE HINTS ${MLX_ROOT}/include ${mlx_of_python}/include)
if(NOT MLX_INCLUDE)
  message(FATAL_ERROR "MLX is not installed for ${Python_EXECUTABLE}, nor in CMAKE_PREFIX_PATH")
endif()
get_filename_component(MLX_INCLUDE "${MLX_INCLUDE}" ABSOLUTE)
cmake_path(GET MLX_INCLUDE PARENT_PATH MLX_ROOT)
message(STATUS "X ${MLX_INCLUDE} ${MLX_ROOT}")
find_library(MLX_LIBRARY mlx NO_CACHE PATHS ${MLX_ROOT}/lib NO_DEFAULT_PATH REQUIRED)

file(STRINGS ${MLX_INCLUDE}/mlx/version.h numbers REGEX "define MLX_VERSION_(MAJOR|MINOR|PATCH)")
list(TRANSFORM numbers REPLACE ".* " "")
list(JOIN numbers "." MLX_VERSION)

add_library(mlx SHARED IMPORTED)
set_target_properties(
  mlx PROPERTIES IMPORTED_LOCATION ${MLX_LIBRARY} INTERFACE_INCLUDE_DIRECTORIES ${MLX_INCLUDE})
