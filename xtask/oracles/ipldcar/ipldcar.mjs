// ipldcar is the @ipld/car oracle of the interop tests.
//
//   ipldcar read FILE     checks every sha2-256 hash; prints "root CID" and "block CID LENGTH" lines
//   ipldcar write IN OUT  writes the blocks of IN again as a CARv1

import { createReadStream, createWriteStream } from 'node:fs'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { CarBlockIterator, CarWriter } from '@ipld/car'
import { sha256 } from 'multiformats/hashes/sha2'
import { equals } from 'multiformats/bytes'

async function check ({ cid, bytes }) {
  if (cid.multihash.code === 0) return
  if (cid.multihash.code !== sha256.code) throw new Error(`${cid}: not sha2-256`)
  const digest = await sha256.digest(bytes)
  if (!equals(digest.digest, cid.multihash.digest)) throw new Error(`${cid}: wrong bytes`)
}

async function read (path) {
  const car = await CarBlockIterator.fromIterable(createReadStream(path))
  const lines = []
  for (const root of await car.getRoots()) lines.push(`root ${root}`)
  for await (const block of car) {
    await check(block)
    lines.push(`block ${block.cid} ${block.bytes.length}`)
  }
  process.stdout.write(lines.map((line) => line + '\n').join(''))
}

async function write (from, to) {
  const car = await CarBlockIterator.fromIterable(createReadStream(from))
  const { writer, out } = CarWriter.create(await car.getRoots())
  const written = pipeline(Readable.from(out), createWriteStream(to))
  for await (const block of car) await writer.put(block)
  await writer.close()
  await written
}

const [command, ...paths] = process.argv.slice(2)
if (command === 'read' && paths.length === 1) await read(paths[0])
else if (command === 'write' && paths.length === 2) await write(paths[0], paths[1])
else {
  process.stderr.write('usage: ipldcar read FILE | ipldcar write IN OUT\n')
  process.exitCode = 2
}
