"""Lists Vulkan's devices: run as a child, `python -m node.media.hardware_vulkan`; JSON on stdout.

A broken driver crashes when its library is loaded, so the node never does this itself.
"""

import json
import sys
from typing import Any

TYPES = {1: "integrated GPU", 2: "discrete GPU", 3: "virtual GPU", 4: "CPU"}


def devices() -> list[dict[str, Any]]:
    """The facts of `node.media.hardware.Device` for each physical device."""
    import vulkan as vk  # noqa: PLC0415 - importing it loads the loader, which may be missing

    application = vk.VkApplicationInfo(apiVersion=vk.VK_MAKE_VERSION(1, 1, 0))
    instance = vk.vkCreateInstance(vk.VkInstanceCreateInfo(pApplicationInfo=application), None)
    try:
        return [described(vk, device) for device in vk.vkEnumeratePhysicalDevices(instance)]
    finally:
        vk.vkDestroyInstance(instance, None)


def described(vk: Any, device: Any) -> dict[str, Any]:  # noqa: ANN401 - the package has no types
    """One device."""
    facts = vk.vkGetPhysicalDeviceProperties(device)
    name = facts.deviceName
    version = int(facts.apiVersion)
    return {
        "name": (name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name))[:256],
        "type": TYPES.get(int(facts.deviceType), "other"),
        "vendor_id": int(facts.vendorID),
        "device_id": int(facts.deviceID),
        "api_version": f"{version >> 22 & 0x7F}.{version >> 12 & 0x3FF}.{version & 0xFFF}",
        "driver_version": int(facts.driverVersion),
    }


def main() -> int:
    """Prints the devices, or one line of text that says why there are none."""
    try:
        found = devices()
    except OSError:
        sys.stdout.write("no Vulkan loader is installed on this machine")
        return 0
    except Exception as error:  # noqa: BLE001 - the package raises a class of its own per VkResult
        sys.stdout.write(f"Vulkan has no device to offer ({type(error).__name__})")
        return 0
    sys.stdout.write(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
