from ._cpu_v2 import *
