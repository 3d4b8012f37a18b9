# What a C++ program needs of mlx_opt: the library, the headers of its interface, and how CMake and
# pkg-config find them. Everything is relative to the prefix; in a wheel that is the Python package.
include(CMakePackageConfigHelpers)
set(package share/cmake/mlx_opt)

install(TARGETS mlx_opt EXPORT mlx_optTargets LIBRARY DESTINATION ${part} COMPONENT part)
install(EXPORT mlx_optTargets NAMESPACE mlx_opt:: DESTINATION ${part}/cmake COMPONENT part)

set(headers mlx_opt api/functions api/optimizer graph/clip_scale graph/norm types/arrays types/clipping
            types/coefficients types/export types/group types/hyperparameters types/master_weights
            types/named_arrays types/options)
foreach(header IN LISTS headers)
  cmake_path(GET header PARENT_PATH folder)
  install(FILES ${PROJECT_SOURCE_DIR}/csrc/mlx_opt/${header}.h DESTINATION include/mlx_opt/${folder})
endforeach()
install(FILES ${MLX_OPT_GENERATED}/mlx_opt/version.h DESTINATION include/mlx_opt)

configure_package_config_file(
  ${PROJECT_SOURCE_DIR}/cmake/mlx_optConfig.cmake.in ${PROJECT_BINARY_DIR}/mlx_optConfig.cmake
  INSTALL_DESTINATION ${package})
write_basic_package_version_file(
  ${PROJECT_BINARY_DIR}/mlx_optConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/mlx_optConfig.cmake
              ${PROJECT_BINARY_DIR}/mlx_optConfigVersion.cmake DESTINATION ${package})

configure_file(${PROJECT_SOURCE_DIR}/cmake/mlx_opt.pc.in mlx_opt.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/mlx_opt.pc DESTINATION share/pkgconfig)
