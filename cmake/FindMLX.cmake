# MLX: target mlx, MLX_ROOT and MLX_VERSION. It is the one that the Python interpreter imports, unless
# MLX_ROOT names another's folder.
set(MLX_ROOT "" CACHE PATH "The folder of the package mlx, if it is not the Python interpreter's")
if(NOT MLX_ROOT)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c "import mlx; print(list(mlx.__path__)[0])"
    OUTPUT_VARIABLE MLX_ROOT
    OUTPUT_STRIP_TRAILING_WHITESPACE
    RESULT_VARIABLE mlx_missing)
  if(mlx_missing)
    message(FATAL_ERROR "MLX is not installed for ${Python_EXECUTABLE}")
  endif()
endif()
file(STRINGS ${MLX_ROOT}/include/mlx/version.h numbers REGEX "define MLX_VERSION_(MAJOR|MINOR|PATCH)")
string(REGEX MATCHALL "[0-9]+" numbers "${numbers}")
list(JOIN numbers . MLX_VERSION)

find_library(MLX_LIBRARY mlx PATHS ${MLX_ROOT}/lib NO_DEFAULT_PATH REQUIRED)
add_library(mlx SHARED IMPORTED)
set_target_properties(
  mlx PROPERTIES IMPORTED_LOCATION ${MLX_LIBRARY} INTERFACE_INCLUDE_DIRECTORIES
                                                  ${MLX_ROOT}/include)
