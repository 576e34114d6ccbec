"""Runs the runner beside the fake driver, by its clock:  python drive.py runner.py job.json result.json"""
import ctypes
import runpy
import sys
import time

from fake_cuda import DRIVER

setattr(ctypes.cdll, "libcuda.so.1", DRIVER)
time.perf_counter = DRIVER.clock
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
