"""Save the weights of a network as a teacher that a pipeline can load."""

import torchvision
from safetensors.torch import save_file

net = torchvision.models.resnet18(num_classes=4)  # or yours, trained; timm.create_model("resnet18", pretrained=True)
save_file(net.state_dict(), "teacher.safetensors")
