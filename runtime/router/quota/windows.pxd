# What Cython is told of `windows.py` where the router is compiled: these are numbers of the machine, in memory
# that is read and written without a detour. Volatile, since a kill may come between any two stores, so that they
# have to stay in the order in which they are written.

cimport cython

cdef Py_ssize_t BEGAN, ENTRIES, EPOCH, EPOCH_AT, HEAD, MOST_ENTRIES, NEEDED, TAIL, TOTAL


cdef class Window:
    cdef readonly long long most
    cdef bint _shared
    cdef long long _digest, _head, _tail, _total
    cdef Py_ssize_t _at
    cdef volatile long long[::1] _integers
    cdef volatile double[::1] _times
    cdef object _rows
    cdef double _keep_s, _grain_s

    @cython.locals(at=Py_ssize_t, entry=Py_ssize_t, head="long long", tail="long long", total="long long")
    cpdef long long left(self, double now) except? -1

    @cython.locals(at=Py_ssize_t, entry=Py_ssize_t, head="long long", kept="long long")
    cpdef long long add(self, long long amount, double now) except -1
