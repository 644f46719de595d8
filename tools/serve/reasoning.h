// Reasoning: splits an answer into what the model thought, between <think> and </think>, and what it says. One owner.
#pragma once

#include <string>

namespace stoker {

class Reasoning {
 public:
  struct Parts {
    std::string reasoning, content;
  };
  // `open`: the prompt ended in <think>, so the answer begins inside. Not `split`: all is content.
  Reasoning(bool split, bool open) : state_(!split ? State::content : open ? State::thinking : State::start) {}

  Parts push(const std::string& text);
  Parts finish();  // the end of the text: what was held back

 private:
  enum class State { start, thinking, after, content };
  void advance(Parts& out, bool last);

  State state_;
  bool said_ = false;  // something of the thinking was given out
  std::string held_;
};

}  // namespace stoker
