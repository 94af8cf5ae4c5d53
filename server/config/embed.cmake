# cmake -DIN=default.yaml -DOUT=default_yaml.h -P embed.cmake
file(READ ${IN} text)
file(WRITE ${OUT} "#include <string_view>
namespace tim4rec {
inline constexpr std::string_view kDefaultYaml = R\"yaml(${text})yaml\";
}
")
