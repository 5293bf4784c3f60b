// Turns parsed proto files into google.protobuf.FileDescriptorProto, which the kernel reads method
// options from and serves by reflection. (protobufjs' own conversion keeps neither files nor options.)
import protobuf from 'protobufjs';
import descriptor from 'protobufjs/ext/descriptor/index.js';

const SCALARS = [
  'double', 'float', 'int64', 'uint64', 'int32', 'fixed64', 'fixed32', 'bool', 'string', 'group',
  'message', 'bytes', 'uint32', 'enum', 'sfixed32', 'sfixed64', 'sint32', 'sint64',
];
const TYPE = Object.fromEntries(SCALARS.map((name, index) => [name, index + 1]));
const LABEL = { optional: 1, required: 2, repeated: 3 };
const WELL_KNOWN = 'google/protobuf/';

/**
 * @param {protobuf.Root} root resolved
 * @param {string} service full name
 * @param {Map<string, string>} names absolute path -> name within the proto folder
 * @returns {Buffer[]} serialized FileDescriptorProto of the service's file and all that it needs,
 *   dependencies first
 */
export function fileDescriptors(root, service, names) {
  const objects = byFile(root);
  const done = new Map();
  const visit = (file) => {
    if (done.has(file)) return;
    done.set(file, null); // proto files cannot import one another in a circle
    const { proto, needs } = describe(objects.get(file));
    needs.delete(file);
    proto.name = names.get(file) ?? file;
    proto.dependency = [...needs].map((need) => names.get(need) ?? need).sort();
    for (const need of [...needs].sort()) visit(need);
    done.delete(file);
    done.set(file, encode(root, proto));
  };
  visit(root.lookupService(service).filename);
  return [...done.values()];
}

function byFile(root) {
  const files = new Map();
  const walk = (space) => {
    for (const item of space.nestedArray) {
      const plain = item.constructor === protobuf.Namespace;
      if (plain) walk(item);
      else files.set(fileOf(item), [...(files.get(fileOf(item)) ?? []), item]);
    }
  };
  walk(root);
  return files;
}

// protobufjs carries descriptor.proto itself and gives its items no file of their own.
function fileOf(item) {
  if (item.filename) return item.filename;
  return item.fullName.startsWith('.google.protobuf.') ? `${WELL_KNOWN}descriptor.proto` : '';
}

function describe(items) {
  const needs = new Set();
  const proto = { package: items[0].parent.fullName.slice(1), syntax: 'proto3' };
  Object.assign(proto, { messageType: [], enumType: [], service: [], extension: [] });
  for (const item of items) {
    if (item instanceof protobuf.Type) proto.messageType.push(message(item, needs));
    else if (item instanceof protobuf.Enum) proto.enumType.push(enumeration(item));
    else if (item instanceof protobuf.Service) proto.service.push(serviceOf(item, needs));
    else if (item instanceof protobuf.Field) proto.extension.push(extension(item, needs));
  }
  if (proto.package === 'google.protobuf') proto.syntax = 'proto2';
  return { proto, needs };
}

function use(item, needs) {
  needs.add(fileOf(top(item)));
  return item.fullName;
}

function top(item) {
  return item.parent instanceof protobuf.Type ? top(item.parent) : item;
}

function field(item, needs, oneofs) {
  const label = item.repeated ? 'repeated' : item.required ? 'required' : 'optional';
  const out = { name: fieldName(item), number: item.id, label: LABEL[label] };
  const resolved = item.resolvedType;
  if (resolved) {
    out.type = resolved instanceof protobuf.Enum ? TYPE.enum : TYPE.message;
    out.typeName = use(resolved, needs);
  } else {
    out.type = TYPE[item.type];
  }
  if (item.partOf) out.oneofIndex = oneofs.indexOf(item.partOf);
  if (item.options?.proto3_optional) out.proto3Optional = true;
  return out;
}

// protobufjs knows the fields of google.protobuf by names in camel case.
function fieldName(item) {
  if (!item.parent?.fullName.startsWith('.google.protobuf.')) return item.name;
  return item.name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

// `map<K, V> name` is on the wire a repeated nested message NameEntry { K key = 1; V value = 2; }.
function mapField(item, owner, needs) {
  const camel = item.name.replace(/(^|_)([a-z0-9])/g, (_match, _bar, letter) => letter.toUpperCase());
  const value = { name: 'value', id: 2, type: item.type, resolvedType: item.resolvedType };
  const entry = {
    name: `${camel}Entry`,
    field: [{ name: 'key', number: 1, label: 1, type: TYPE[item.keyType] }, field(value, needs, [])],
    options: { mapEntry: true },
  };
  const typeName = `${owner.fullName}.${entry.name}`;
  const label = LABEL.repeated;
  return [{ name: item.name, number: item.id, label, type: TYPE.message, typeName }, entry];
}

function message(item, needs) {
  // Oneofs that stand for `optional` come last, as protoc has them.
  const synthetic = (oneof) => oneof.fieldsArray.some((one) => one.options?.proto3_optional);
  const oneofs = [...item.oneofsArray].sort((a, b) => synthetic(a) - synthetic(b));
  const out = { name: item.name, field: [], nestedType: [], enumType: [], extension: [] };
  out.oneofDecl = oneofs.map((oneof) => ({ name: oneof.name }));
  for (const one of item.fieldsArray) {
    if (one.name.startsWith('.')) continue; // an extension that protobufjs hung on its extendee
    if (one instanceof protobuf.MapField) {
      const [made, entry] = mapField(one, item, needs);
      out.field.push(made);
      out.nestedType.push(entry);
    } else {
      out.field.push(field(one, needs, oneofs));
    }
  }
  for (const nested of item.nestedArray) {
    if (nested instanceof protobuf.Type) out.nestedType.push(message(nested, needs));
    else if (nested instanceof protobuf.Enum) out.enumType.push(enumeration(nested));
    else if (nested instanceof protobuf.Field) out.extension.push(extension(nested, needs));
  }
  const ranges = item.extensions ?? [];
  out.extensionRange = ranges.map(([start, end]) => ({ start, end: Math.min(end + 1, 1 << 29) }));
  return out;
}

function extension(item, needs) {
  return { ...field(item, needs, []), extendee: use(item.parent.lookupType(item.extend), needs) };
}

function enumeration(item) {
  const value = Object.entries(item.values).map(([name, number]) => ({ name, number }));
  const aliases = new Set(Object.values(item.values)).size < value.length;
  return { name: item.name, value, ...(aliases ? { options: { allowAlias: true } } : {}) };
}

function serviceOf(item, needs) {
  const method = item.methodsArray.map((one) => ({
    name: one.name,
    inputType: use(one.resolvedRequestType, needs),
    outputType: use(one.resolvedResponseType, needs),
    clientStreaming: one.requestStream,
    serverStreaming: one.responseStream,
    options: methodOptions(one, needs),
  }));
  return { name: item.name, method };
}

// Custom options are fields that protobufjs hangs on MethodOptions under their full names.
function methodOptions(method, needs) {
  const out = {};
  for (const [key, value] of (method.parsedOptions ?? []).flatMap(Object.entries)) {
    const custom = /^\((.+)\)$/.exec(key);
    if (custom) {
      const option = method.parent.lookup(custom[1]);
      needs.add(option.filename);
      out[option.fullName] = value;
    } else {
      out[protobuf.util.camelCase(key)] = value;
    }
  }
  return out;
}

function encode(root, proto) {
  const type = root.lookup('google.protobuf.FileDescriptorProto') ?? descriptor.FileDescriptorProto;
  return Buffer.from(type.encode(type.fromObject(proto)).finish());
}
