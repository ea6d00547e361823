//! The functions of libc that change files, defined in this executable. std and sled call these, and these call libc's.
//!
//! In tests, rustix calls libc too, because of one of its features. The kernel is asked at each write whether a file
//! has the sync flag.
#![allow(unsafe_code, reason = "interposing libc cannot be done without")]
#![allow(clippy::missing_safety_doc, clippy::cast_sign_loss, clippy::cast_possible_wrap, reason = "C's types")]

use std::ffi::{CStr, OsStr, c_char, c_int, c_uint, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use libc::{AT_FDCWD, iovec, mode_t, off_t, size_t, ssize_t};

use crate::inject::{self, Call, Verdict};
use crate::record;

/// The number of recordings and rules. If it is 0, all calls go straight to libc.
pub(crate) static WATCHERS: AtomicUsize = AtomicUsize::new(0);

fn watched() -> bool {
    WATCHERS.load(Ordering::Acquire) > 0
}

/// Returns libc's own function, with the type that the caller expects.
macro_rules! real {
    ($name:ident: $type:ty) => {{
        static FOUND: AtomicUsize = AtomicUsize::new(0);
        std::mem::transmute::<usize, $type>(find(&FOUND, concat!(stringify!($name), "\0")))
    }};
}

/// Finds a function of libc. `name` ends with a zero.
fn find(found: &AtomicUsize, name: &'static str) -> usize {
    if found.load(Ordering::Relaxed) == 0 {
        // SAFETY: the name ends with a zero.
        let symbol = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr().cast()) } as usize;
        assert_ne!(symbol, 0, "libc has no {name}");
        found.store(symbol, Ordering::Relaxed);
    }
    found.load(Ordering::Relaxed)
}

fn fail(errno: c_int) -> c_int {
    // SAFETY: the pointer is to this thread's own number.
    unsafe { *libc::__errno_location() = errno };
    -1
}

/// Returns the path of a descriptor. Returns `None` if it is not a file, or was deleted.
fn path_of(fd: c_int) -> Option<PathBuf> {
    let link = format!("/proc/self/fd/{fd}\0");
    let mut buffer = [0_u8; 4096];
    // SAFETY: the name ends with a zero, and the length is the buffer's.
    let len = unsafe { libc::readlink(link.as_ptr().cast(), buffer.as_mut_ptr().cast(), buffer.len()) };
    let path = buffer.get(..usize::try_from(len).ok()?)?;
    let real = path.starts_with(b"/") && !path.ends_with(b" (deleted)");
    real.then(|| PathBuf::from(OsStr::from_bytes(path)))
}

/// Returns the path in the arguments of `openat` and similar calls.
unsafe fn path_at(dir: c_int, path: *const c_char) -> Option<PathBuf> {
    // SAFETY: the caller passes a C string.
    let path = Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes())).to_owned();
    if path.is_absolute() {
        return Some(path);
    }
    let base = if dir == AT_FDCWD { std::env::current_dir().ok()? } else { path_of(dir)? };
    Some(base.join(path))
}

/// Returns true if a write to this descriptor is durable when it returns, because of its open flags or the file's sync
/// flag.
fn is_sync(fd: c_int) -> bool {
    let mut flags: libc::c_long = 0;
    // SAFETY: both calls only read, and `flags` is large enough for what the kernel writes.
    let (opened, asked) =
        unsafe { (libc::fcntl(fd, libc::F_GETFL), libc::ioctl(fd, libc::FS_IOC_GETFLAGS, &raw mut flags)) };
    // FS_SYNC_FL of linux/fs.h.
    (opened != -1 && opened & libc::O_DSYNC != 0) || (asked == 0 && flags & 0x8 != 0)
}

/// Handles a write: applies the rules, calls `write` with the allowed number of bytes, and logs it.
fn writing(fd: c_int, bytes: &[u8], at: Option<off_t>, write: impl FnOnce(size_t) -> ssize_t) -> ssize_t {
    let Some(path) = watched().then(|| path_of(fd)).flatten() else { return write(bytes.len()) };
    let allowed = match inject::verdict(Call::Write, &path) {
        Verdict::Pass => bytes.len(),
        Verdict::Short(len) => bytes.len().min(len),
        Verdict::Fail(errno) => return fail(errno) as ssize_t,
    };
    let written = write(allowed);
    if let Some(bytes) = usize::try_from(written).ok().and_then(|written| bytes.get(..written)) {
        // SAFETY: the call only reads the position of the descriptor, which is after the written bytes.
        let at = at.unwrap_or_else(|| unsafe { libc::lseek(fd, 0, libc::SEEK_CUR) } - written as off_t);
        record::written(&path, at as u64, bytes, is_sync(fd));
    }
    written
}

/// Handles a call on a descriptor that returns zero or fails.
fn calling(call: Call, fd: c_int, real: impl FnOnce() -> c_int, log: impl FnOnce(&Path, record::Began)) -> c_int {
    let Some(path) = watched().then(|| path_of(fd)).flatten() else { return real() };
    if let Verdict::Fail(errno) = inject::verdict(call, &path) {
        return fail(errno);
    }
    let began = record::began(&path);
    let returned = real();
    if returned == 0 {
        log(&path, began);
    }
    returned
}

/// Handles a call on a path.
unsafe fn calling_at(
    call: Call,
    (dir, path): (c_int, *const c_char),
    real: impl FnOnce() -> c_int,
    log: impl FnOnce(&Path),
) -> c_int {
    // SAFETY: the arguments are the caller's.
    let Some(path) = watched().then(|| unsafe { path_at(dir, path) }).flatten() else { return real() };
    if let Verdict::Fail(errno) = inject::verdict(call, &path) {
        return fail(errno);
    }
    let returned = real();
    if returned >= 0 {
        log(&path);
    }
    returned
}

unsafe fn slice<'a>(bytes: *const c_void, len: size_t) -> &'a [u8] {
    // SAFETY: the arguments are the caller's. If the length is 0, the address may be anything.
    if len == 0 { &[] } else { unsafe { std::slice::from_raw_parts(bytes.cast(), len) } }
}

unsafe fn gathered(parts: *const iovec, count: c_int) -> Vec<u8> {
    // SAFETY: the arguments are the caller's.
    let parts = unsafe { std::slice::from_raw_parts(parts, usize::try_from(count).unwrap_or_default()) };
    // SAFETY: so are these.
    parts.iter().flat_map(|part| unsafe { slice(part.iov_base, part.iov_len) }).copied().collect()
}

type Write = unsafe extern "C" fn(c_int, *const c_void, size_t) -> ssize_t;
type WriteAt = unsafe extern "C" fn(c_int, *const c_void, size_t, off_t) -> ssize_t;
type WriteParts = unsafe extern "C" fn(c_int, *const iovec, c_int) -> ssize_t;
type WritePartsAt = unsafe extern "C" fn(c_int, *const iovec, c_int, off_t) -> ssize_t;
type Read = unsafe extern "C" fn(c_int, *mut c_void, size_t) -> ssize_t;
type ReadAt = unsafe extern "C" fn(c_int, *mut c_void, size_t, off_t) -> ssize_t;
type OnFd = unsafe extern "C" fn(c_int) -> c_int;
type SyncRange = unsafe extern "C" fn(c_int, off_t, off_t, c_uint) -> c_int;
type Truncate = unsafe extern "C" fn(c_int, off_t) -> c_int;
type Allocate = unsafe extern "C" fn(c_int, c_int, off_t, off_t) -> c_int;
type AllocatePosix = unsafe extern "C" fn(c_int, off_t, off_t) -> c_int;
type Open = unsafe extern "C" fn(*const c_char, c_int, mode_t) -> c_int;
type OpenAt = unsafe extern "C" fn(c_int, *const c_char, c_int, mode_t) -> c_int;
type Rename = unsafe extern "C" fn(*const c_char, *const c_char) -> c_int;
type RenameAt = unsafe extern "C" fn(c_int, *const c_char, c_int, *const c_char) -> c_int;
type OnPath = unsafe extern "C" fn(*const c_char) -> c_int;
type UnlinkAt = unsafe extern "C" fn(c_int, *const c_char, c_int) -> c_int;
type Mkdir = unsafe extern "C" fn(*const c_char, mode_t) -> c_int;
type MkdirAt = unsafe extern "C" fn(c_int, *const c_char, mode_t) -> c_int;

#[unsafe(no_mangle)]
unsafe extern "C" fn write(fd: c_int, bytes: *const c_void, len: size_t) -> ssize_t {
    let given = unsafe { slice(bytes, len) };
    writing(fd, given, None, |len| unsafe { real!(write: Write)(fd, bytes, len) })
}

macro_rules! pwrite {
    ($($name:ident),*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(fd: c_int, bytes: *const c_void, len: size_t, at: off_t) -> ssize_t {
            let given = unsafe { slice(bytes, len) };
            writing(fd, given, Some(at), |len| unsafe { real!($name: WriteAt)(fd, bytes, len, at) })
        }
    )*};
}
pwrite!(pwrite, pwrite64);

#[unsafe(no_mangle)]
unsafe extern "C" fn writev(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t {
    if !watched() {
        return unsafe { real!(writev: WriteParts)(fd, parts, count) };
    }
    let bytes = unsafe { gathered(parts, count) };
    writing(fd, &bytes, None, |len| unsafe { real!(write: Write)(fd, bytes.as_ptr().cast(), len) })
}

macro_rules! pwritev {
    ($($name:ident),*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(fd: c_int, parts: *const iovec, count: c_int, at: off_t) -> ssize_t {
            if !watched() {
                return unsafe { real!($name: WritePartsAt)(fd, parts, count, at) };
            }
            let bytes = unsafe { gathered(parts, count) };
            writing(fd, &bytes, Some(at), |len| unsafe { real!(pwrite64: WriteAt)(fd, bytes.as_ptr().cast(), len, at) })
        }
    )*};
}
pwritev!(pwritev, pwritev64);

/// Applies the rules to a read.
fn reading(fd: c_int, len: size_t, read: impl FnOnce(size_t) -> ssize_t) -> ssize_t {
    match watched().then(|| path_of(fd)).flatten().map(|path| inject::verdict(Call::Read, &path)) {
        Some(Verdict::Fail(errno)) => fail(errno) as ssize_t,
        Some(Verdict::Short(allowed)) => read(len.min(allowed)),
        Some(Verdict::Pass) | None => read(len),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn read(fd: c_int, bytes: *mut c_void, len: size_t) -> ssize_t {
    reading(fd, len, |len| unsafe { real!(read: Read)(fd, bytes, len) })
}

macro_rules! pread {
    ($($name:ident),*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(fd: c_int, bytes: *mut c_void, len: size_t, at: off_t) -> ssize_t {
            reading(fd, len, |len| unsafe { real!($name: ReadAt)(fd, bytes, len, at) })
        }
    )*};
}
pread!(pread, pread64);

macro_rules! sync {
    ($($name:ident),*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(fd: c_int) -> c_int {
            calling(Call::Sync, fd, || unsafe { real!($name: OnFd)(fd) }, record::synced)
        }
    )*};
}
sync!(fsync, fdatasync);

/// Makes nothing durable: the call neither writes the size of a file nor flushes the disk's cache.
#[unsafe(no_mangle)]
unsafe extern "C" fn sync_file_range(fd: c_int, at: off_t, len: off_t, flags: c_uint) -> c_int {
    let real = || unsafe { real!(sync_file_range: SyncRange)(fd, at, len, flags) };
    calling(Call::SyncRange, fd, real, |path, _| record::range_pushed(path))
}

/// Always fails, so that the caller reads and writes instead: a copy inside the kernel would not be seen. Fails without
/// a recording too, because a copy may begin before one.
#[unsafe(no_mangle)]
extern "C" fn copy_file_range(_: c_int, _: *mut off_t, _: c_int, _: *mut off_t, _: size_t, _: c_uint) -> ssize_t {
    fail(libc::ENOSYS) as ssize_t
}

macro_rules! sendfile {
    ($($name:ident),*) => {$(
        #[unsafe(no_mangle)]
        extern "C" fn $name(_: c_int, _: c_int, _: *mut off_t, _: size_t) -> ssize_t {
            fail(libc::ENOSYS) as ssize_t
        }
    )*};
}
sendfile!(sendfile, sendfile64);

macro_rules! ftruncate {
    ($($name:ident),*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(fd: c_int, len: off_t) -> c_int {
            let real = || unsafe { real!($name: Truncate)(fd, len) };
            calling(Call::Truncate, fd, real, |path, _| record::truncated(path, len as u64))
        }
    )*};
}
ftruncate!(ftruncate, ftruncate64);

macro_rules! fallocate {
    ($($name:ident),*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(fd: c_int, mode: c_int, at: off_t, len: off_t) -> c_int {
            let real = || unsafe { real!($name: Allocate)(fd, mode, at, len) };
            calling(Call::Allocate, fd, real, |path, _| {
                // Blocks after the end do not change the content of a file.
                if mode != libc::FALLOC_FL_KEEP_SIZE {
                    assert_eq!(mode, 0, "the recorder knows no other way to allocate");
                    record::extended(path, (at + len) as u64);
                }
            })
        }
    )*};
}
fallocate!(fallocate, fallocate64);

macro_rules! posix_fallocate {
    ($($name:ident),*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(fd: c_int, at: off_t, len: off_t) -> c_int {
            let real = || unsafe { real!($name: AllocatePosix)(fd, at, len) };
            calling(Call::Allocate, fd, real, |path, _| record::extended(path, (at + len) as u64))
        }
    )*};
}
posix_fallocate!(posix_fallocate, posix_fallocate64);

/// std passes a mode with every open. C passes it like any other argument on the platforms of this test.
macro_rules! open {
    ($($name:ident),*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
            let real = || unsafe { real!($name: Open)(path, flags, mode) };
            unsafe { calling_at(Call::Open, (AT_FDCWD, path), real, |path| opened(path, flags)) }
        }
    )*};
}
open!(open, open64);

macro_rules! openat {
    ($($name:ident),*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(dir: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
            let real = || unsafe { real!($name: OpenAt)(dir, path, flags, mode) };
            unsafe { calling_at(Call::Open, (dir, path), real, |path| opened(path, flags)) }
        }
    )*};
}
openat!(openat, openat64);

fn opened(path: &Path, flags: c_int) {
    if flags & libc::O_CREAT != 0 {
        record::created(path);
    }
    if flags & libc::O_TRUNC != 0 {
        record::truncated(path, 0);
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    unsafe { renaming((AT_FDCWD, from), (AT_FDCWD, to), || real!(rename: Rename)(from, to)) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn renameat(from_dir: c_int, from: *const c_char, to_dir: c_int, to: *const c_char) -> c_int {
    let real = || unsafe { real!(renameat: RenameAt)(from_dir, from, to_dir, to) };
    unsafe { renaming((from_dir, from), (to_dir, to), real) }
}

unsafe fn renaming(from: (c_int, *const c_char), to: (c_int, *const c_char), real: impl FnOnce() -> c_int) -> c_int {
    let to = if watched() { unsafe { path_at(to.0, to.1) } } else { None };
    unsafe { calling_at(Call::Rename, from, real, |from| record::renamed(from, &to.unwrap_or_default())) }
}

macro_rules! remove {
    ($($name:ident),*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name(path: *const c_char) -> c_int {
            let real = || unsafe { real!($name: OnPath)(path) };
            unsafe { calling_at(Call::Remove, (AT_FDCWD, path), real, record::removed) }
        }
    )*};
}
remove!(unlink, rmdir);

#[unsafe(no_mangle)]
unsafe extern "C" fn unlinkat(dir: c_int, path: *const c_char, flags: c_int) -> c_int {
    let real = || unsafe { real!(unlinkat: UnlinkAt)(dir, path, flags) };
    unsafe { calling_at(Call::Remove, (dir, path), real, record::removed) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mkdir(path: *const c_char, mode: mode_t) -> c_int {
    let real = || unsafe { real!(mkdir: Mkdir)(path, mode) };
    unsafe { calling_at(Call::CreateDir, (AT_FDCWD, path), real, record::created_dir) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mkdirat(dir: c_int, path: *const c_char, mode: mode_t) -> c_int {
    let real = || unsafe { real!(mkdirat: MkdirAt)(dir, path, mode) };
    unsafe { calling_at(Call::CreateDir, (dir, path), real, record::created_dir) }
}
