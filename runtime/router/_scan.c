/* `scan` as machine code: the same functions, for what a request is searched for some twenty times.

   A method of `bytes` costs 800 instructions before it looks at the first byte. Types are checked here, since
   whoever calls may be interpreted; places may not be below 0, which nobody needs. */

#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>
#include <string.h>

#define SHORT_CUTS 16
#define MOST_DEPTH 1024 /* as in scan.py */
#define MOST_DIGITS 18 /* as in scan.py: of a number that a long long holds, whatever they are */

static int
is_bytes(const char *name, PyObject *const *args, Py_ssize_t count, Py_ssize_t wanted, Py_ssize_t least,
         Py_ssize_t most)
{
    if (count < least || count > most) {
        PyErr_Format(PyExc_TypeError, "%s takes %zd to %zd arguments, not %zd", name, least, most, count);
        return 0;
    }
    for (Py_ssize_t i = 0; i < wanted; i++) {
        if (!PyBytes_Check(args[i])) {
            PyErr_Format(PyExc_TypeError, "%s takes bytes, not %s", name, Py_TYPE(args[i])->tp_name);
            return 0;
        }
    }
    return 1;
}

/* The place that `arg` says, at most `most`; -1 with an exception where it says none. */
static Py_ssize_t
place(PyObject *arg, Py_ssize_t most)
{
    Py_ssize_t at = PyLong_AsSsize_t(arg);
    if (at < 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "a place is not below 0");
        return -1;
    }
    return at < most ? at : most;
}

/* The first `what`, as `memmem` finds it. That takes two instructions for each byte; its first byte alone is
   found at a tenth of that, which is the faster way as long as it is rare. */
static const char *
search(const char *data, Py_ssize_t size, const char *what, Py_ssize_t length)
{
    const char *end = data + size;
    if (length < 1)
        return data;
    for (int looks = 0; looks < SHORT_CUTS; looks++) {
        if (end - data < length || (data = memchr(data, what[0], end - data - length + 1)) == NULL)
            return NULL;
        if (memcmp(data, what, length) == 0)
            return data;
        data++;
    }
    return memmem(data, end - data, what, length);
}

/* What `find` and `rfind` are asked: for `what`, from one place in `data` up to another. */
typedef struct {
    const char *data, *what;
    Py_ssize_t length, start, end;
} Asked;

/* Whether the arguments make sense; if not, with an exception. */
static int
asked(const char *name, PyObject *const *args, Py_ssize_t count, Asked *found)
{
    if (!is_bytes(name, args, count, 2, 2, 4))
        return 0;
    found->data = PyBytes_AS_STRING(args[0]);
    found->what = PyBytes_AS_STRING(args[1]);
    found->length = PyBytes_GET_SIZE(args[1]);
    found->start = count > 2 ? place(args[2], PY_SSIZE_T_MAX) : 0;
    if (found->start < 0)
        return 0;
    found->end = count > 3 ? place(args[3], PyBytes_GET_SIZE(args[0])) : PyBytes_GET_SIZE(args[0]);
    return found->end >= 0;
}

static PyObject *
scan_find(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    Asked in;
    if (!asked("find", args, count, &in))
        return NULL;
    if (in.start > in.end || in.length > in.end - in.start)
        return PyLong_FromLong(-1);
    const char *found = search(in.data + in.start, in.end - in.start, in.what, in.length);
    return PyLong_FromSsize_t(found == NULL ? -1 : found - in.data);
}

static PyObject *
scan_rfind(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    Asked in;
    if (!asked("rfind", args, count, &in))
        return NULL;
    if (in.length == 0)
        return PyLong_FromSsize_t(in.start > in.end ? -1 : in.end);
    while (in.start <= in.end && in.length <= in.end - in.start) {
        const char *found = memrchr(in.data + in.start, in.what[0], in.end - in.start - in.length + 1);
        if (found == NULL)
            break;
        if (memcmp(found, in.what, in.length) == 0)
            return PyLong_FromSsize_t(found - in.data);
        in.end = found - in.data + in.length - 1;
    }
    return PyLong_FromLong(-1);
}

/* What those digits say, of which there are at most MOST_DIGITS. */
static long long
value(const char *digits, Py_ssize_t length)
{
    long long number = 0;
    for (Py_ssize_t i = 0; i < length; i++)
        number = number * 10 + (digits[i] - '0');
    return number;
}

static PyObject *
scan_number_between(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    if (!is_bytes("number_between", args, count, 3, 3, 3))
        return NULL;
    const char *data = PyBytes_AS_STRING(args[0]);
    Py_ssize_t size = PyBytes_GET_SIZE(args[0]), before = PyBytes_GET_SIZE(args[1]),
               after = PyBytes_GET_SIZE(args[2]);
    Py_ssize_t length = size - before - after;
    if (length < 1 || length > MOST_DIGITS || memcmp(data, PyBytes_AS_STRING(args[1]), before) != 0 ||
        memcmp(data + size - after, PyBytes_AS_STRING(args[2]), after) != 0)
        return PyLong_FromLong(-1);
    for (Py_ssize_t i = before; i < before + length; i++)
        if (data[i] < '0' || data[i] > '9')
            return PyLong_FromLong(-1);
    return PyLong_FromLongLong(value(data + before, length));
}

/* The number that is the value of `key` (with its quotes and its colon) in the flat object from `data` to `end`,
   its closing brace; -1 where that is not certain. */
static long long
value_of(const char *data, const char *end, PyObject *key)
{
    Py_ssize_t length = PyBytes_GET_SIZE(key);
    const char *found = search(data, end - data, PyBytes_AS_STRING(key), length);
    if (found == NULL || found == data || (found[-1] != '{' && found[-1] != ','))
        return -1;
    const char *digits = found + length, *last = digits;
    while (*last >= '0' && *last <= '9') /* ends at the brace */
        last++;
    if (last == digits || last - digits > MOST_DIGITS || (*last != ',' && *last != '}'))
        return -1;
    if (search(last, end - last, PyBytes_AS_STRING(key), length) != NULL)
        return -1; /* twice */
    return value(digits, last - digits);
}

static PyObject *
scan_flat_numbers(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 4 || !PyBytes_Check(args[0]) || !PyBytes_Check(args[2]) || !PyBytes_Check(args[3])) {
        PyErr_SetString(PyExc_TypeError, "flat_numbers takes bytes, a place and two keys");
        return NULL;
    }
    Py_ssize_t size = PyBytes_GET_SIZE(args[0]), start = place(args[1], size);
    if (start < 0)
        return NULL;
    const char *data = PyBytes_AS_STRING(args[0]) + start;
    const char *end = memchr(data, '}', size - start);
    if (end == NULL || *data != '{' || memchr(data + 1, '{', end - data - 1) || memchr(data, '\\', end - data))
        Py_RETURN_NONE;
    long long first = value_of(data, end, args[2]), second = value_of(data, end, args[3]);
    if (first < 0 || second < 0)
        Py_RETURN_NONE;
    PyObject *numbers = PyTuple_New(2);
    if (numbers == NULL)
        return NULL;
    PyTuple_SET_ITEM(numbers, 0, PyLong_FromLongLong(first));
    PyTuple_SET_ITEM(numbers, 1, PyLong_FromLongLong(second));
    if (PyTuple_GET_ITEM(numbers, 0) == NULL || PyTuple_GET_ITEM(numbers, 1) == NULL)
        Py_CLEAR(numbers);
    return numbers;
}

static PyObject *
scan_is_chunk(PyObject *self, PyObject *data)
{
    if (!is_bytes("is_chunk", &data, 1, 1, 1, 1))
        return NULL;
    const char *at = PyBytes_AS_STRING(data);
    Py_ssize_t length = PyBytes_GET_SIZE(data), size = 0, digits = 0;
    for (; digits < 3 && digits < length; digits++) { /* 4096 has four */
        char digit = at[digits];
        if (digit >= '0' && digit <= '9')
            size = size * 16 + (digit - '0');
        else if (digit >= 'a' && digit <= 'f')
            size = size * 16 + (digit - 'a' + 10);
        else
            break;
    }
    return PyBool_FromLong(size > 0 && at[0] != '0' && length == digits + size + 4 && at[digits] == '\r' &&
                           at[digits + 1] == '\n' && at[length - 2] == '\r' && at[length - 1] == '\n');
}

static PyObject *
scan_is_plain_event(PyObject *self, PyObject *chunk)
{
    if (!is_bytes("is_plain_event", &chunk, 1, 1, 1, 1))
        return NULL;
    const char *data = PyBytes_AS_STRING(chunk);
    Py_ssize_t size = PyBytes_GET_SIZE(chunk);
    const char *end = data + size;
    if (size < 3 || memcmp(end - 3, "\n\r\n", 3) != 0)
        Py_RETURN_FALSE;
    /* Without a way out, so that the compiler takes many bytes at a time. */
    unsigned char high = 0, comment = 0, usage = 0;
    for (Py_ssize_t i = 0; i + 1 < size; i++) {
        high |= data[i] & 0x80;
        comment |= (data[i] == '\n') & (data[i + 1] == ':');
        usage |= (data[i] == '"') & (data[i + 1] == 'u');
    }
    if (high || comment)
        Py_RETURN_FALSE;
    return PyBool_FromLong(!usage || memmem(data, size, "\"usage\"", 7) == NULL);
}

/* The end of the text in which `at` stands, with its quotes; `end` where it does not end before. `quoted` is as
   `nested` has it, before and after. */
static const char *
text_end(const char *at, const char *end, long *quoted)
{
    if (*quoted == 2 && at < end) {
        at++;
        *quoted = 1;
    }
    for (; at < end; at++) {
        if (*at == '"') {
            *quoted = 0;
            return at + 1;
        }
        if (*at == '\\' && ++at == end) {
            *quoted = 2;
            return end;
        }
    }
    return end;
}

static PyObject *
scan_nested(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    if (!is_bytes("nested", args, count, 1, 4, 4))
        return NULL;
    const char *data = PyBytes_AS_STRING(args[0]), *end = data + PyBytes_GET_SIZE(args[0]);
    Py_ssize_t start = place(args[1], PyBytes_GET_SIZE(args[0]));
    Py_ssize_t depth = start < 0 ? -1 : place(args[2], PY_SSIZE_T_MAX);
    long quoted = depth < 0 ? -1 : PyLong_AsLong(args[3]);
    if (PyErr_Occurred())
        return NULL;
    const char *at = data + start;
    if (quoted)
        at = text_end(at, end, &quoted);
    while (at < end && depth > 1) {
        switch (*at++) {
        case '"':
            quoted = 1;
            at = text_end(at, end, &quoted);
            break;
        case '{':
        case '[':
            if (++depth > MOST_DEPTH)
                goto over;
            break;
        case '}':
        case ']':
            depth--;
        }
    }
over:
    return Py_BuildValue("nnl", (Py_ssize_t)(at - data), depth, quoted);
}

static PyMethodDef methods[] = {
    {"find", (PyCFunction)(void (*)(void))scan_find, METH_FASTCALL, NULL},
    {"rfind", (PyCFunction)(void (*)(void))scan_rfind, METH_FASTCALL, NULL},
    {"flat_numbers", (PyCFunction)(void (*)(void))scan_flat_numbers, METH_FASTCALL, NULL},
    {"is_chunk", scan_is_chunk, METH_O, NULL},
    {"is_plain_event", scan_is_plain_event, METH_O, NULL},
    {"nested", (PyCFunction)(void (*)(void))scan_nested, METH_FASTCALL, NULL},
    {"number_between", (PyCFunction)(void (*)(void))scan_number_between, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_scan", NULL, 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC
PyInit__scan(void)
{
    return PyModuleDef_Init(&module);
}
