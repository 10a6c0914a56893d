"""What a device is kept busy with: ratios measured in one run, against the engine alone and an ideal queue. See docs/GPU.md."""
