"""Language models in OpenVINO GenAI, for CPUs."""
