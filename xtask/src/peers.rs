//! The programs carrack is tested and measured against, by exact version.
//!
//! In       a list of peers.
//! Out      a directory of links, one a program, which the tests get as `CARRACK_PEERS`.
//! Limits   builds are kept in `$XDG_CACHE_HOME/carrack-peers/NAME-VERSION` (or `~/.cache`), so
//!          that only the first run takes minutes.
//! Not here starting them (`tests/it/support`, `bench`).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::shell::{Result, cargo, find, root, run, target_dir};

/// How a peer is had.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A program of a Go module: `module@version`, the package to build (empty: the module itself).
    Go {
        module: &'static str,
        package: &'static str,
    },
    /// A Go program of ours, whose `go.mod` pins the library.
    GoOracle { dir: &'static str },
    /// A JavaScript program of ours, whose `package-lock.json` pins the library.
    NpmOracle { dir: &'static str, node: Node },
    /// A module of Python, whose `requirements.txt` pins all that it needs.
    Python {
        dir: &'static str,
        module: &'static str,
    },
    /// A program of a Debian package.
    Debian { package: &'static str },
    /// A cargo subcommand from the crate registry.
    Crate,
}

/// What runs a JavaScript program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    /// The `node` of the machine.
    Machine,
    /// The one that the program's own packages bring, because it must be newer.
    Packaged,
}

/// A program that is run beside carrack.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    /// The name of the program, also of its link.
    pub(crate) program: &'static str,
    name: &'static str,
    version: &'static str,
    kind: Kind,
}

/// kubo, lassie, the three S3 servers, the two CAR libraries, Helia, nginx, openssl, wrk, curl and
/// faketime.
pub(crate) const ALL: &[Peer] = &[
    Peer {
        program: "ipfs",
        name: "kubo",
        version: "0.43.0",
        kind: Kind::Go {
            module: "github.com/ipfs/kubo",
            package: "cmd/ipfs",
        },
    },
    Peer {
        program: "lassie",
        name: "lassie",
        version: "0.25.0",
        kind: Kind::Go {
            module: "github.com/filecoin-project/lassie",
            package: "cmd/lassie",
        },
    },
    VERSITYGW,
    Peer {
        program: "minio",
        name: "minio",
        version: "0.0.0-20260212201848-7aac2a2c5b7c",
        kind: Kind::Go {
            module: "github.com/minio/minio",
            package: "",
        },
    },
    Peer {
        program: "moto",
        name: "moto",
        version: "5.2.5",
        kind: Kind::Python {
            dir: "xtask/oracles/moto",
            module: "moto.server",
        },
    },
    Peer {
        program: "gocar",
        name: "go-car",
        version: "2.17.0",
        kind: Kind::GoOracle {
            dir: "xtask/oracles/gocar",
        },
    },
    Peer {
        program: "ipldcar",
        name: "ipld-car",
        version: "5.4.7",
        kind: Kind::NpmOracle {
            dir: "xtask/oracles/ipldcar",
            node: Node::Machine,
        },
    },
    Peer {
        program: "helia",
        name: "helia",
        version: "7.1.15",
        kind: Kind::NpmOracle {
            dir: "xtask/oracles/helia",
            node: Node::Packaged,
        },
    },
    Peer {
        program: "curl",
        name: "curl",
        version: "",
        kind: Kind::Debian { package: "curl" },
    },
    Peer {
        program: "faketime",
        name: "libfaketime",
        version: "",
        kind: Kind::Debian {
            package: "faketime",
        },
    },
    NGINX,
    OPENSSL,
    Peer {
        program: "wrk",
        name: "wrk",
        version: "",
        kind: Kind::Debian { package: "wrk" },
    },
];

/// An S3 server whose objects are files.
pub(crate) const VERSITYGW: Peer = Peer {
    program: "versitygw",
    name: "versitygw",
    version: "1.8.0",
    kind: Kind::Go {
        module: "github.com/versity/versitygw",
        package: "cmd/versitygw",
    },
};

/// A web server.
pub(crate) const NGINX: Peer = Peer {
    program: "nginx",
    name: "nginx",
    version: "",
    kind: Kind::Debian {
        package: "nginx-light",
    },
};

/// Makes the certificates that nginx shows.
pub(crate) const OPENSSL: Peer = Peer {
    program: "openssl",
    name: "openssl",
    version: "",
    kind: Kind::Debian { package: "openssl" },
};

/// Checks licences, sources and banned crates.
pub(crate) const CARGO_DENY: Peer = Peer {
    program: "cargo-deny",
    name: "cargo-deny",
    version: "0.20.2",
    kind: Kind::Crate,
};

/// Builds and runs fuzz targets.
pub(crate) const CARGO_FUZZ: Peer = Peer {
    program: "cargo-fuzz",
    name: "cargo-fuzz",
    version: "0.13.2",
    kind: Kind::Crate,
};

/// Installs what is missing and returns the directory of links.
pub(crate) fn install(peers: &[Peer]) -> Result<PathBuf> {
    let links = target_dir().join("peers");
    fs::create_dir_all(&links)?;
    for peer in peers {
        let program = ensure(peer)?;
        let link = links.join(peer.program);
        if fs::read_link(&link).ok().as_ref() != Some(&program) {
            let fresh = links.join(format!("{}.{}", peer.program, std::process::id()));
            std::os::unix::fs::symlink(&program, &fresh)?;
            fs::rename(&fresh, &link)?;
        }
    }
    Ok(links)
}

/// Installs one peer if it is missing and returns the path of its program.
pub(crate) fn ensure(peer: &Peer) -> Result<PathBuf> {
    let installed = match peer.kind {
        Kind::Go { module, package } => {
            need("go", "install Go 1.25 or newer: https://go.dev/dl")?;
            cached(&key(peer, &[])?, peer.program, |dir| {
                build_go(peer, module, package, dir)
            })
        }
        Kind::GoOracle { dir: source } => {
            need("go", "install Go 1.25 or newer: https://go.dev/dl")?;
            let source = root().join(source);
            let files = ["go.mod", "go.sum", "main.go"].map(|file| source.join(file));
            cached(&key(peer, &files)?, peer.program, |dir| {
                copy(&files, dir)?;
                run(go(dir).args(["build", "-trimpath", "-o", peer.program, "."]))
            })
        }
        Kind::NpmOracle { dir: source, node } => {
            need(
                "node",
                "install Node.js 20 or newer: apt-get install nodejs",
            )?;
            need("npm", "install npm: apt-get install npm")?;
            let source = root().join(source);
            let script = format!("{}.mjs", peer.program);
            let files = ["package.json", "package-lock.json", &script];
            let files = files.map(|file| source.join(file));
            cached(&key(peer, &files)?, peer.program, |dir| {
                install_npm(peer, node, &files, dir)
            })
        }
        Kind::Python { dir, module } => {
            need("python3", "install Python 3.11 or newer with its venv")?;
            let files = [root().join(dir).join("requirements.txt")];
            cached(&key(peer, &files)?, peer.program, |dir| {
                install_python(peer, module, &files, dir)
            })
        }
        Kind::Debian { package } => install_debian(peer.program, package),
        Kind::Crate => cached(&key(peer, &[])?, peer.program, |dir| build_crate(peer, dir)),
    };
    installed.map_err(|error| format!("{} cannot be installed: {error}", peer.name).into())
}

fn need(toolchain: &str, how: &str) -> Result {
    match find(toolchain) {
        Some(_) => Ok(()),
        None => Err(format!("`{toolchain}` is not on the PATH; {how}").into()),
    }
}

/// `NAME-VERSION`, and for our own oracles the start of the hash of their source.
fn key(peer: &Peer, sources: &[PathBuf]) -> Result<String> {
    let mut key = format!("{}-{}", peer.name, peer.version);
    if !sources.is_empty() {
        let mut hash = Sha256::new();
        for source in sources {
            hash.update(fs::read(source)?);
        }
        for byte in hash.finalize().iter().take(4) {
            key.push_str(&format!("-{byte:02x}"));
        }
    }
    Ok(key)
}

/// Runs `build` in a fresh directory that becomes `key` only when it went well.
fn cached(key: &str, program: &str, build: impl FnOnce(&Path) -> Result) -> Result<PathBuf> {
    let cache = cache_dir()?;
    let done = cache.join(key);
    if !done.join(program).is_file() {
        println!("installing {key}");
        let part = cache.join(format!("{key}.part-{}", std::process::id()));
        fs::create_dir_all(&part)?;
        let built = build(&part);
        if built.is_ok() && fs::rename(&part, &done).is_ok() {
            return Ok(done.join(program));
        }
        // Another run was faster, or the build failed; either way the part is of no use.
        let _ = fs::remove_dir_all(&part);
        built?;
    }
    let path = done.join(program);
    if path.is_file() {
        Ok(path)
    } else {
        Err(format!(
            "{} holds no {program}: remove it and try again",
            done.display()
        )
        .into())
    }
}

fn cache_dir() -> Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .filter(|dir| !dir.is_empty())
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
        .ok_or("neither XDG_CACHE_HOME nor HOME is set")?;
    let dir = cache.join("carrack-peers");
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

fn go(dir: &Path) -> Command {
    let mut command = Command::new("go");
    command
        .current_dir(dir)
        .env("GOFLAGS", "-mod=mod")
        .env("CGO_ENABLED", "0");
    command
}

/// A scratch module that requires the program's module: its own `go.sum` decides the rest.
fn build_go(peer: &Peer, module: &str, package: &str, dir: &Path) -> Result {
    run(go(dir).args(["mod", "init", "peer"]))?;
    run(go(dir).args(["get", &format!("{module}@v{}", peer.version)]))?;
    let package = format!("{module}/{package}");
    let package = package.trim_end_matches('/');
    run(go(dir).args([
        "build",
        "-trimpath",
        "-ldflags",
        "-s -w",
        "-o",
        peer.program,
        package,
    ]))
}

fn install_npm(peer: &Peer, node: Node, files: &[PathBuf], dir: &Path) -> Result {
    copy(files, dir)?;
    // The lock files hold no peers of packages: Helia's are those of mobile phones.
    run(Command::new("npm").current_dir(dir).args([
        "ci",
        "--no-audit",
        "--no-fund",
        "--legacy-peer-deps",
        "--ignore-scripts",
    ]))?;
    // `readlink` because the tests call it through a link.
    let home = "$(dirname \"$(readlink -f \"$0\")\")";
    let node = match node {
        Node::Machine => String::from("node"),
        Node::Packaged => format!("\"{home}/node_modules/.bin/node\""),
    };
    script(
        &dir.join(peer.program),
        &format!("{node} \"{home}/{}.mjs\"", peer.program),
    )
}

fn install_python(peer: &Peer, module: &str, files: &[PathBuf], dir: &Path) -> Result {
    copy(files, dir)?;
    run(Command::new("python3")
        .current_dir(dir)
        .args(["-m", "venv", "venv"]))?;
    let python = dir.join("venv/bin/python");
    run(Command::new(&python)
        .current_dir(dir)
        .args(["-m", "pip", "install", "--quiet", "--no-input"])
        .args(["--requirement", "requirements.txt"]))?;
    // The interpreter finds its packages by its own place; scripts of pip would hold this path,
    // which is not the last one.
    script(
        &dir.join(peer.program),
        &format!("\"$(dirname \"$(readlink -f \"$0\")\")/venv/bin/python\" -m {module}"),
    )
}

/// A program that runs `command` with the arguments it is given.
fn script(program: &Path, command: &str) -> Result {
    fs::write(program, format!("#!/bin/sh\nexec {command} \"$@\"\n"))?;
    fs::set_permissions(program, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn install_debian(program: &str, package: &str) -> Result<PathBuf> {
    if let Some(path) = find(program) {
        return Ok(path);
    }
    let how = format!("install the package {package} by hand");
    need("apt-get", &how)?;
    println!("installing {package}");
    // RUNLEVEL=1 keeps the package from starting its service.
    let apt = || {
        let mut apt = Command::new("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive")
            .env("RUNLEVEL", "1")
            .arg("-qq");
        apt
    };
    run(apt().arg("update"))?;
    run(apt().args(["install", "-y", "--no-install-recommends", package]))?;
    find(program).ok_or_else(|| format!("{package} brought no {program}; {how}").into())
}

fn build_crate(peer: &Peer, dir: &Path) -> Result {
    let target = dir.join("target");
    run(cargo()
        .args(["install", "--quiet", "--locked", "--debug", "--root"])
        .arg(dir)
        .arg(format!("{}@{}", peer.name, peer.version))
        .env("CARGO_TARGET_DIR", &target))?;
    fs::rename(dir.join("bin").join(peer.program), dir.join(peer.program))?;
    fs::remove_dir_all(target)?;
    Ok(())
}

fn copy(files: &[PathBuf], dir: &Path) -> Result {
    for file in files {
        let name = file.file_name().ok_or("a file without a name")?;
        fs::copy(file, dir.join(name))?;
    }
    Ok(())
}
