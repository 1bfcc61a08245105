"""What several papers share; it knows none of them.

checkpoint     files that are whole or not there; what a run needs to go on
checks         what an argument must be; arrays of any kind as tensors
curvature      Hessian-vector products, Lanczos
environments   pole and car, batched; the swing-up of chapters 33 and 34
graph          a function as a CUDA graph
placed         constants of a problem, on each device once
networks       many small networks at once; forward passes without side effects
populations    antithetic noise, ranks, nests of tensors, populations over several processes
stack          E models of one shape, their weights as rows of one tensor
train          the training loop of such models
"""
