// The report of a training run: what was learned, for an eye to judge.
#ifndef TIM4REC_MODEL_CLI_REPORT_H_
#define TIM4REC_MODEL_CLI_REPORT_H_

#include <string>
#include <utility>
#include <vector>

#include "model/config/config.h"
#include "model/evaluation/evaluator.h"
#include "model/training/trainer.h"
#include "model/weights/package.h"

namespace tim4rec {

// In a package's directory, beside what serving needs. Whoever replaces the package removes it.
inline constexpr char kReportFile[] = "report.html";

struct ReportInputs {
  std::string title;
  std::vector<std::pair<std::string, std::string>> facts;  // name and value, first thing shown
  const ModelConfig* config;
  const std::vector<Item>* items;  // [V]
  const TrainResult* trained;
  const RankingResult* test;
};

// One HTML page that needs nothing from outside (well-formed XML but for its DOCTYPE): facts and
// accuracy, learning curves, accuracy by history and by gap, the decay of each head over real time
// with its half-life (with time_decay), and the nearest neighbours of a few popular items.
std::string ReportHtml(const ReportInputs& inputs);

}  // namespace tim4rec

#endif  // TIM4REC_MODEL_CLI_REPORT_H_
