#include "model/cli/command_line.h"

int main(int argc, char** argv) { return tim4rec::RunCommandLine(argc, argv); }
