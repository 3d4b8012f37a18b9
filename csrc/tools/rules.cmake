# Writes the rules' descriptions to rules.py with a program that the build machine runs.
set(sources tools/write_rules.cpp mlx_opt/step/descriptions.cpp mlx_opt/types/coefficients.cpp)
if(CMAKE_CROSSCOMPILING)
  find_program(HOST_CXX NAMES c++ g++ clang++ REQUIRED)
  list(TRANSFORM sources PREPEND ${CMAKE_CURRENT_SOURCE_DIR}/)
  set(write_rules ${CMAKE_CURRENT_BINARY_DIR}/write_rules)
  add_custom_command(
    OUTPUT ${write_rules}
    COMMAND ${HOST_CXX} -std=c++20 -I${CMAKE_CURRENT_SOURCE_DIR} ${sources} -o ${write_rules}
    DEPENDS ${sources}
    VERBATIM)
else()
  add_executable(write_rules ${sources})
  target_include_directories(write_rules PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
  set(write_rules write_rules)
endif()
add_custom_command(
  OUTPUT rules.py
  COMMAND ${write_rules} rules.py
  DEPENDS ${write_rules}
  VERBATIM)
add_custom_target(rules ALL DEPENDS rules.py)
