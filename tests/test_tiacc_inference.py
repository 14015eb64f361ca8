import inspect

import tiacc
import tiacc_inference


def test_the_originals_name_is_the_same_function():
    assert tiacc_inference.optimize is tiacc.optimize


def test_the_originals_parameters_come_first_and_by_name():
    names = list(inspect.signature(tiacc_inference.optimize).parameters)
    assert names[:6] == ["input_model", "optimization_level", "device_type", "input_shapes", "test_data", "save_path"]
