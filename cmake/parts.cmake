# The parts for other releases of MLX than the one of this build: this project once more for each,
# without what they share. MLX_OPT_OTHER_MLX lists the folders of their headers and libraries.
set(MLX_OPT_OTHER_MLX "" CACHE STRING "Roots of further releases of MLX that get a part")
if(NOT MLX_OPT_OTHER_MLX)
  return()
endif()

include(ExternalProject)
set(arguments
    -DCMAKE_BUILD_TYPE=${CMAKE_BUILD_TYPE}
    -DMLX_OPT_KERNELS=$<TARGET_FILE:mlx_opt_kernels>
    -DMLX_OPT_PYTHON=${MLX_OPT_PYTHON}
    -DMLX_OPT_CUDA=${MLX_OPT_CUDA}
    -DMLX_OPT_METAL=${MLX_OPT_METAL}
    -DMLX_OPT_SANITIZE=${MLX_OPT_SANITIZE}
    -DPython_EXECUTABLE=${Python_EXECUTABLE})
foreach(name CMAKE_CXX_COMPILER_LAUNCHER CMAKE_MAKE_PROGRAM CMAKE_TOOLCHAIN_FILE MACOS_TOOLS SKBUILD_SOABI
             nanobind_DIR)
  if(DEFINED ${name})
    list(APPEND arguments -D${name}=${${name}})
  endif()
endforeach()
foreach(root IN LISTS MLX_OPT_OTHER_MLX)
  cmake_path(GET root PARENT_PATH folder)
  cmake_path(GET folder FILENAME name)
  set(build ${PROJECT_BINARY_DIR}/parts/${name})
  # The terminal, which only one build has at a time: the processors are the others' meanwhile.
  ExternalProject_Add(
    part-${name}
    SOURCE_DIR ${PROJECT_SOURCE_DIR}
    BINARY_DIR ${build}
    CMAKE_ARGS ${arguments} -DMLX_ROOT=${root}
    DEPENDS mlx_opt_kernels
    BUILD_ALWAYS TRUE
    USES_TERMINAL_BUILD TRUE
    INSTALL_COMMAND "")
  install(
    CODE "set(strip)
          if(CMAKE_INSTALL_DO_STRIP)
            set(strip --strip)
          endif()
          execute_process(
            COMMAND \"${CMAKE_COMMAND}\" --install \"${build}\" --prefix \"\${CMAKE_INSTALL_PREFIX}\"
                    --component part \${strip} COMMAND_ERROR_IS_FATAL ANY)")
endforeach()
