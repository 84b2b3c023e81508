// The likeliest class of one picture, by a file made with `export: {input: uint8_nhwc}`.
// PIXELS.rgb has the picture at the file's size: a byte for each colour of each pixel, row by row.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <iterator>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: predict MODEL.onnx PIXELS.rgb\n";
    return 2;
  }
  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "predict");
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(1);
  Ort::Session session(env, argv[1], options);
  std::vector<int64_t> shape = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();
  shape[0] = 1;  // images; then height, width, channels

  std::ifstream file(argv[2], std::ios::binary);
  std::vector<uint8_t> pixels((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (pixels.size() != static_cast<size_t>(shape[1] * shape[2] * shape[3])) {
    std::cerr << argv[2] << " has " << pixels.size() << " bytes, the file takes " << shape[1] << "x" << shape[2] << "x"
              << shape[3] << "\n";
    return 3;
  }
  Ort::MemoryInfo memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  Ort::Value input =
      Ort::Value::CreateTensor<uint8_t>(memory, pixels.data(), pixels.size(), shape.data(), shape.size());
  const char* from = "input";
  const char* to = "logits";
  std::vector<Ort::Value> outputs = session.Run(Ort::RunOptions{nullptr}, &from, &input, 1, &to, 1);
  const float* logits = outputs[0].GetTensorData<float>();
  size_t classes = outputs[0].GetTensorTypeAndShapeInfo().GetElementCount();

  Ort::AllocatorWithDefaultOptions allocator;
  Ort::ModelMetadata about = session.GetModelMetadata();
  Ort::AllocatedStringPtr names = about.LookupCustomMetadataMapAllocated("class_names", allocator);
  std::cout << "class " << std::max_element(logits, logits + classes) - logits << " of " << names.get() << "\n";
}
