"""What several papers share; it knows none of them.

checks         what an argument must be; arrays of any kind as tensors
curvature      Hessian-vector products, Lanczos
environments   pole and car, batched; the swing-up of chapters 33 and 34
networks       many small networks at once; looking at one without leaving a trace
populations    antithetic noise, ranks, nests of tensors, populations over several processes
stack          E models of one shape, their weights as rows of one tensor
"""
